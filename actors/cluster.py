"""Our own Ray on this machine, and joining it or another one.

`home/ray/` holds what a driver needs: `token` and `address`, readable by their owner alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from farm import config
from farm.config import Settings
from farm.errors import BadInput, Conflict, Fault
from farm.job import Cause

SECRET = ("FARM_", "AWS_", "PG")
log = logging.getLogger("farm.ray")
NAMESPACE = "farm"
OBJECT_STORE_BYTES = 256 << 20  # frames of a few groups; nothing lasting lives in it
LONGEST_TEMP = 40  # Ray adds some 66 characters, and a Unix socket's path ends at 107
POLL_S = 0.5
DIAL_S = 2.0
ANSWER_S = 20.0  # of a head that is there, on a busy machine
TOKEN_MODE = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
# A head lost is this cluster lost: its processes need not wait a minute for it, Ray's default. And the ranks are what
# the machine is there for: they do not yield to everything else, as Ray would have them do (niceness 15).
# What a rank has started ends with it, however it ends.
HEAD_ONLY = {
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
    "RAY_worker_niceness": "0",
    "RAY_process_group_cleanup_enabled": "1",
}
_joining = threading.Lock()  # Ray's connection is one per process


def serve(settings: Settings) -> int:
    """Run the head until it dies or a signal ends it. Its processes die with this one, by kill -9 too."""
    folder = _folder(settings)
    with _alone(folder):
        _token(folder)
        _environment(folder)
        _forget_secrets()
        os.environ |= HEAD_ONLY
        temp = _fresh_temp(folder)
        try:
            node = _head(temp)
            _write(folder / "address", node.address)
            log.info("Ray listens on %s", node.address)
            return _watch(node, _asked_to_stop())
        finally:
            (folder / "address").unlink(missing_ok=True)
            shutil.rmtree(temp, ignore_errors=True)


def _forget_secrets() -> None:
    """Ranks inherit what the head was started with: no database login, no key, no store's credentials."""
    for name in [name for name in os.environ if name.startswith(SECRET)]:
        del os.environ[name]


def connect(settings: Settings) -> str:
    """Join Ray if this process has not joined that very head yet; Fault(RAY_GONE) while there is none.

    Names the connection: handles made under another name are void.
    """
    foreign = foreign_address(settings)
    with _joining:
        address = _reached(settings)
        if not foreign:
            _environment(_folder(settings))
        return _join(address)


def reach(settings: Settings) -> str:
    """The address at which Ray's head answers, without joining it; Fault(RAY_GONE) where none does."""
    address = foreign_address(settings) or _own_address(settings)
    _dial(address)
    return address


def probe(settings: Settings) -> None:
    """Whether Ray's head answers; where none does, leave it, whether or not there is work that needs it."""
    with _joining:
        _reached(settings)


def _reached(settings: Settings) -> str:
    try:
        return reach(settings)
    except Fault:
        _leave()  # Ray ends a process that stays connected to a lost head
        raise


def disconnect() -> None:
    """Forget the connection; the next `connect` makes a new one."""
    with _joining:
        _leave()


def foreign_address(settings: Settings) -> str:
    """The cluster we did not start, or "" for our own."""
    address = settings.ray_address or os.environ.get("RAY_ADDRESS", "")
    if "://" in address:
        raise BadInput(f"{address!r} is a Ray Client address", field="ray_address", fix="give the head's host:port")
    return address


def _leave() -> None:
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


def _join(address: str) -> str:
    import ray

    if ray.is_initialized():
        if _port(ray.get_runtime_context().gcs_address) == _port(address) and _stands():
            return _connection()
        ray.shutdown()
    _outlive()
    _start_nothing()
    try:
        ray.init(address=_literal(address), namespace=NAMESPACE, log_to_driver=False, logging_level="WARNING")
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise Fault(Cause.RAY_GONE, f"cannot join Ray at {address}: {error}") from error
    return _connection()


def _stands() -> bool:
    """Whether what we joined still does: another head may be at its address, and our node may be lost while it lives.

    Asked by the client that raises: with `ray.nodes()` a strange head would end this process.
    """
    import ray
    from ray._private.worker import global_worker

    own = ray.NodeID.from_hex(ray.get_runtime_context().get_node_id())
    try:
        return bool(all(global_worker.gcs_client.check_alive([own], timeout=ANSWER_S)))
    except ray.exceptions.RayError as error:
        log.info("Ray is joined anew: %s", error)
        return False


def _outlive() -> None:
    """On a lost connection Ray ends a process whose "raylet" is gone: the one named here, or else its parent where that
    is init, as under systemd. This process goes on without Ray, so it names itself."""
    os.environ["RAY_RAYLET_PID"] = str(os.getpid())
    _read_again()


def _start_nothing() -> None:
    """A thread that calls Ray when another has just left would have it start a cluster of its own in this process."""
    hook: Any = importlib.import_module("ray._private.auto_init_hook")
    hook.enable_auto_connect = False


def _connection() -> str:
    import ray

    context = ray.get_runtime_context()
    return f"{context.get_node_id()}/{context.get_job_id()}"


def _literal(address: str) -> str:
    # Ray replaces 127.0.0.1 by the machine's outer address, where our own head does not listen.
    host, port = address.rsplit(":", 1)
    return f"[::ffff:127.0.0.1]:{port}" if host in {"127.0.0.1", "localhost"} else address


def _port(address: str) -> str:
    return address.rsplit(":", 1)[-1]


def _own_address(settings: Settings) -> str:
    path = _folder(settings) / "address"
    try:
        return path.read_text()
    except FileNotFoundError as error:
        raise Fault(Cause.RAY_GONE, f"Ray is not running: no {path} (start it with `farm up` or `farm ray`)") from error


def _dial(address: str) -> None:
    """Ask the port first: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), DIAL_S).close()
    except (OSError, ValueError) as error:
        raise Fault(Cause.RAY_GONE, f"Ray does not answer at {address}: {error}") from error


def _environment(folder: Path) -> None:
    """Ray reads these when it is imported or first used; its workers inherit them."""
    os.environ.pop("RAY_AUTH_TOKEN", None)
    os.environ.pop("RAY_ADDRESS", None)
    os.environ |= TOKEN_MODE | {"RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    _read_again()


def _read_again() -> None:
    if "ray" in sys.modules:
        raylet: Any = importlib.import_module("ray._raylet")
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()


def _head(temp: Path) -> Any:
    """What `ray start --head --block` does, but on loopback: the command turns 127.0.0.1 into the outer address."""
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    params = RayParams(
        node_ip_address="127.0.0.1",
        node_name=NAMESPACE,
        gcs_server_port=0,
        num_cpus=os.cpu_count(),
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        include_log_monitor=False,
        no_monitor=True,
        temp_dir=str(temp / "r"),  # Ray opens its own folder to everyone; the one around it stays ours
    )
    return Node(params, head=True, shutdown_at_exit=True, spawn_reaper=True)


def _asked_to_stop() -> threading.Event:
    """Ray's own handler would first wait for work to drain; ours goes back to the queue."""
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: asked.set())
    return asked


def _watch(node: Any, asked: threading.Event) -> int:
    while not (dead := node.dead_processes()):
        if asked.wait(POLL_S):
            node.kill_all_processes(check_alive=False, allow_graceful=True)
            return 0
    log.error("Ray's %s ended; its logs are in %s", ", ".join(kind for kind, _ in dead), node.get_logs_dir_path())
    return 1


def _folder(settings: Settings) -> Path:
    return settings.home.absolute() / "ray"


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(f"a Ray head of this farm runs already: {folder} is locked") from error
        yield


def _token(folder: Path) -> None:
    path = folder / "token"
    if not path.exists():
        _write(path, secrets.token_hex(32))


def _fresh_temp(folder: Path) -> Path:
    """A short folder for sockets and logs; the one of the head before is dropped."""
    note = folder / "temp"
    if note.exists():
        shutil.rmtree(note.read_text(), ignore_errors=True)
    base = tempfile.gettempdir()
    temp = tempfile.mkdtemp(prefix="farm-ray-", dir=base if len(base) <= LONGEST_TEMP - 17 else "/tmp")  # noqa: S108
    _write(note, temp)
    return Path(temp)


def _write(path: Path, text: str) -> None:
    """Whole or not at all, and never readable by others."""
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    part.replace(path)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    sys.exit(serve(config.load()))


if __name__ == "__main__":
    main()
