"""What `farm up` does before its children run, and how one waits for it to be ready."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from farm.commands.beforehand import (
    check_encoder,
    database_fix,
    default_model,
    family,
    first_policy,
    port_is_free,
    ready_models,
)
from farm.commands.output import say
from farm.commands.session import kept_key, key_path, open_client, open_store
from farm.errors import Conflict, FarmError, Fault, Unavailable
from farm.supervisor import GRACE_S, Child, Supervisor, alone, dies_with
from farm.waiting import in_words

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from farm.access import Access
    from farm.config import Settings

UP = [sys.executable, "-m", "farm.cli", "up"]
POLL_S = 0.3
READY_S = 300.0
CHILDREN = ("signer", "ray", "api", "dispatch")  # the signer first, because nothing is published without it
FOR_SIGNER = ("FARM_PASSPHRASE",)  # and the name of its file: none of the others opens a key
STOP_S = (len(CHILDREN) + 1) * GRACE_S  # they are stopped one after the other


def make_home(settings: Settings) -> None:
    """Prompts and pictures are nobody else's. A home that is there stays as its owner left it."""
    settings.home.mkdir(0o700, parents=True, exist_ok=True)


def prepare(settings: Settings) -> Path:
    """Migrate the database and see that the first key works; returns where that key is."""
    from farm.access import Access
    from farm.sealed import make_keys
    from provenance.client import check_path
    from provenance.keyfiles import passphrase_of

    if not port_is_free(settings.host, settings.port):
        raise Conflict(
            f"{settings.host}:{settings.port} is taken", fix="is a farm running already? else choose another FARM_PORT"
        )
    check_path(settings.signer_socket)
    check_encoder(settings)
    first_policy(settings)
    default_model(settings, ready_models(settings))
    open_store(settings)  # what cannot be opened at all is told here, not in the log of each child
    make_home(settings)
    with alone(settings.home):  # else a second farm would say where its pages are, and then that it cannot run
        if not settings.quarantine_key:
            make_keys(settings.home, passphrase_of(settings))
    engine = _migrated(settings.database_url)
    path = _first_key(settings, Access(engine))
    engine.dispose()
    return path


def _migrated(database_url: str) -> Engine:
    from farm.db import connect, migrate

    engine = connect(database_url)
    try:
        migrate(engine)
    except Fault as error:
        shown = engine.url.render_as_string(hide_password=True)
        raise Unavailable(f"{shown}: {error.detail}", fix=database_fix(engine.url, error.detail)) from error
    return engine


def _first_key(settings: Settings, access: Access) -> Path:
    path = key_path(settings.home)
    if access.find_key(kept_key(path)) is None:
        access.create_project(settings.project)
        key = access.create_key(settings.project, "first key", "operator")
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{key}\n")
    return path


def supervisor(settings: Settings) -> Supervisor:
    """Another's Ray cluster is not ours to start."""
    foreign = settings.ray_address or os.environ.get("RAY_ADDRESS")
    names = [name for name in CHILDREN if not (foreign and name == "ray")]
    hidden = {name: () if name == "signer" else FOR_SIGNER for name in names}
    return Supervisor(settings.home, [Child(name, argv(name), without=hidden[name]) for name in names])


def argv(child: str) -> list[str]:
    """Of one that is started again by whoever runs it: the dispatcher needs no keeper of its own."""
    return [sys.executable, "-m", "farm.cli", child, *(["--unkept"] if child == "dispatch" else [])]


def announce(settings: Settings) -> None:
    wait_ready(settings, float("inf"))
    say(f"farm: ready at {settings.api_url}")


def wait_ready(settings: Settings, patience_s: float = READY_S, process: subprocess.Popen[bytes] | None = None) -> None:
    from farm.client import FarmClient

    end, said = time.monotonic() + patience_s, ""
    with FarmClient(settings.api_url) as client:
        while True:
            try:
                client.ready()
                return
            except FarmError as error:
                missing = in_words(error.more.get("missing", [])) or "the API"
            if process is not None and process.poll() is not None:
                raise Unavailable("the farm ended while it started", fix=f"see {_log(settings)}")
            if time.monotonic() > end:
                raise Unavailable(
                    f"not ready after {patience_s:.0f} s: waits for {missing}", fix="`farm doctor` says more"
                )
            if missing != said:
                said = missing
                say(f"farm: waiting for {missing}")
            time.sleep(POLL_S)


@contextmanager
def running(settings: Settings) -> Iterator[Settings]:
    """A farm that answers: the one that runs, or one of our own that ends with the block."""
    if _answers(settings):
        yield settings
        return
    if settings.url:
        raise Unavailable(f"no farm answers at {settings.url}", fix="unset FARM_URL to start one here")
    own = settings.model_copy(update={"port": _free_port(settings), "key": ""})
    before = signal.signal(signal.SIGTERM, _leave)  # its default would skip what stands under `finally`
    process = _start(own)
    try:
        wait_ready(own, process=process)
        yield own
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)


def _answers(settings: Settings) -> bool:
    """Ours, and it takes our key: another farm, or anything else, may well listen on the same port."""
    try:
        with open_client(settings) as client:
            return "items" in client.get("/api/batches", limit=1)
    except FarmError:
        return False


def _free_port(settings: Settings) -> int:
    if port_is_free(settings.host, settings.port):
        return settings.port
    with socket.create_server((settings.host, 0), family=family(settings.host)) as probe:
        return int(probe.getsockname()[1])


def _start(settings: Settings) -> subprocess.Popen[bytes]:
    path = _log(settings)
    make_home(settings)
    path.parent.mkdir(exist_ok=True)
    say(f"farm: starting one at {settings.api_url}; its log is {path}")
    with path.open("ab") as file:
        environment = os.environ | {"FARM_PORT": str(settings.port)}
        return subprocess.Popen(
            UP,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            preexec_fn=dies_with(os.getpid(), signal.SIGTERM),  # noqa: PLW1509 - it only makes system calls
        )


def _log(settings: Settings) -> Path:
    return settings.home / "log" / "up.log"
