"""Joining Ray, our own on this machine or another one, and leaving it in time when it is lost."""

from __future__ import annotations

import importlib
import logging
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from farm.config import Settings
from farm.errors import BadInput, Fault
from farm.job import Cause

log = logging.getLogger("farm.ray")
NAMESPACE = "farm"
DIAL_S = 2.0
ANSWER_S = 20.0  # of a head that is there, on a busy machine
BREATH_S = 0.2
TOKEN_MODE = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
# A head that dies between our knock and Ray's: one try lasts 40 s, and Ray's own twenty a quarter of an hour.
TRIED_ONCE = {"RAY_gcs_server_port_wait_time_s": "1"}
_joining = threading.Lock()  # Ray's connection is one per process


def connect(settings: Settings) -> str:
    """Join Ray if this process has not joined that very head yet; Fault(RAY_GONE) while there is none.

    Names the connection: handles made under another name are void.
    """
    foreign = foreign_address(settings)
    with _joining:
        address = _reached(settings)
        if not foreign:
            environment(folder_of(settings))
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
        if _port(ray.get_runtime_context().gcs_address) == _port(address) and _stands(address):
            return _connection()
        ray.shutdown()
    _outlive()
    _start_nothing()
    try:
        ray.init(address=_literal(address), namespace=NAMESPACE, log_to_driver=False, logging_level="WARNING")
    except Exception as error:  # Ray asserts, and raises what has no class of its own
        raise Fault(Cause.RAY_GONE, f"cannot join Ray at {address}: {error}") from error
    connection = _connection()
    threading.Thread(target=_hold_on, args=(address, connection), name="ray", daemon=True).start()
    return connection


def _hold_on(address: str, connection: str) -> None:
    """Leave a lost head at once: were we still asking it for something when the next one answers at its address, Ray
    would end this process. A line that stays silent breaks when the head does."""
    while True:
        try:
            with _line(address) as line:
                line.settimeout(None)
                while line.recv(4096):  # Ray's server greets, and ends a line that is silent for two minutes
                    pass
        except (OSError, Fault) as error:
            log.info("the line to Ray at %s broke: %s", address, error)
        with _joining:
            if not _joined(connection):
                return
            if not _stands(address):
                return _leave()
        time.sleep(BREATH_S)  # whatever it was that broke the line, it is not to be asked without end


def _joined(connection: str) -> bool:
    import ray

    return ray.is_initialized() and _connection() == connection


def _stands(address: str) -> bool:
    """Whether what we joined still does: another head may be at its address, and our node may be lost while it lives.

    Asked by the client that raises: with `ray.nodes()` a strange head would end this process.
    """
    import ray
    from ray._private.worker import global_worker

    own, end = ray.NodeID.from_hex(ray.get_runtime_context().get_node_id()), time.monotonic() + ANSWER_S
    while time.monotonic() < end:
        try:
            _dial(address)
            return bool(all(global_worker.gcs_client.check_alive([own], timeout=1.0)))
        except (Fault, ray.exceptions.AuthenticationError) as error:
            log.info("Ray is to be joined anew: %s", error)
            return False
        except ray.exceptions.RayError as error:
            log.info("Ray at %s is slow to answer: %s", address, error)
    return False


def _outlive() -> None:
    """On a lost connection Ray ends a process whose "raylet" is gone: the one named here, or else its parent where that
    is init, as under systemd. This process goes on without Ray, so it names itself."""
    os.environ["RAY_RAYLET_PID"] = str(os.getpid())
    os.environ |= TRIED_ONCE
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
    path = folder_of(settings) / "address"
    try:
        return path.read_text()
    except FileNotFoundError as error:
        raise Fault(Cause.RAY_GONE, f"Ray is not running: no {path} (start it with `farm up` or `farm ray`)") from error
    except OSError as error:
        raise Fault(Cause.RAY_GONE, f"where Ray is running cannot be read: {error}") from error


def _dial(address: str) -> None:
    """Ask the port first: Ray itself would try for minutes."""
    _line(address).close()


def _line(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    try:
        return socket.create_connection((host.strip("[]"), int(port)), DIAL_S)
    except (OSError, ValueError) as error:
        raise Fault(Cause.RAY_GONE, f"Ray does not answer at {address}: {error}") from error


def environment(folder: Path) -> None:
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


def folder_of(settings: Settings) -> Path:
    return settings.home.absolute() / "ray"
