"""Our own Ray on this machine: a head on loopback, behind a token.

`home/ray/` holds what a driver needs: `token` and `address`, readable by their owner alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from actors.cluster import NAMESPACE, environment, folder_of
from farm import config
from farm.config import Settings
from farm.errors import Conflict

SECRET = ("FARM_", "AWS_", "PG")
log = logging.getLogger("farm.ray")
OBJECT_STORE_BYTES = 256 << 20  # frames of a few groups; nothing lasting lives in it
LONGEST_TEMP = 40  # Ray adds some 66 characters, and a Unix socket's path ends at 107
POLL_S = 0.5
# A head lost is this cluster lost: its processes need not wait a minute for it, Ray's default. And the ranks are what
# the machine is there for: they do not yield to everything else, as Ray would have them do (niceness 15).
# What a rank has started ends with it, however it ends.
HEAD_ONLY = {
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
    "RAY_worker_niceness": "0",
    "RAY_process_group_cleanup_enabled": "1",
}


def serve(settings: Settings) -> int:
    """Run the head until it dies or a signal ends it. Its processes die with this one, by kill -9 too."""
    folder = folder_of(settings)
    with _alone(folder):
        _token(folder)
        environment(folder)
        forget_secrets()
        os.environ |= HEAD_ONLY
        temp = _fresh_temp(folder)
        try:
            node = _head(temp)
            _write(folder / "address", node.address)
            log.info("Ray listens on %s", node.address)
            return watch(node, asked_to_stop())
        finally:
            (folder / "address").unlink(missing_ok=True)
            shutil.rmtree(temp, ignore_errors=True)


def forget_secrets() -> None:
    """Ranks inherit what the head was started with: no database login, no key, no store's credentials."""
    for name in [name for name in os.environ if name.startswith(SECRET)]:
        del os.environ[name]


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


def asked_to_stop() -> threading.Event:
    """Ray's own handler would first wait for work to drain; ours goes back to the queue."""
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: asked.set())
    return asked


def watch(node: Any, asked: threading.Event) -> int:
    while not (dead := node.dead_processes()):
        if asked.wait(POLL_S):
            node.kill_all_processes(check_alive=False, allow_graceful=True)
            return 0
    log.error("Ray's %s ended; its logs are in %s", ", ".join(kind for kind, _ in dead), node.get_logs_dir_path())
    return 1


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
