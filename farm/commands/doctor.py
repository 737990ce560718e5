"""`farm doctor`: what a farm needs on this machine, and how to mend what is missing."""

from __future__ import annotations

import shlex
import shutil
import socket
import stat
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Annotated

import typer

from farm.commands.output import as_json
from farm.errors import FarmError, Fault, Unavailable
from farm.job import Cause

if TYPE_CHECKING:
    from farm.config import Settings

PACKAGES = ("torch", "ray", "transformers", "open_clip_torch", "c2pa-python", "fastapi", "sqlmodel", "pillow")
ROOM = 2 << 30
EVERYONE = stat.S_IRWXO  # a group may be meant: that of a signer with a user of its own
STARTED = "is it running? `farm up` starts it, and home/log says why it ended"
FIXES = {
    Cause.SIGNER_DOWN: STARTED,
    Cause.SIGNER_FAILED: STARTED,
    Cause.RAY_GONE: STARTED,
    Cause.DATABASE_DOWN: "`farm up` makes it; else see that FARM_DATABASE names a database that answers",
    Cause.STORE_DOWN: "see that FARM_STORE names a place that can be written",
    Cause.STORE_FULL: "make room, or set FARM_STORE to a larger place",
}


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    ok: bool
    detail: str
    fix: str = ""


def doctor(
    json_: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """Check what the farm needs. Exit code 1 if something is missing."""
    from farm import config

    settings = config.load()
    found = [_run(name, check, settings) for name, check in CHECKS.items()]
    if json_:
        as_json([asdict(check) for check in found])
    else:
        for check in found:
            print(f"{'ok ' if check.ok else 'NO '} {check.name:<9} {check.detail}")
            if check.fix and not check.ok:
                print(f"{'':<14}{check.fix}")
    if not all(check.ok for check in found):
        raise typer.Exit(1)


def _run(name: str, check: Callable[[Settings], tuple[bool, str, str]], settings: Settings) -> Check:
    try:
        return Check(name, *check(settings))
    except Fault as error:
        return Check(name, False, error.detail, FIXES.get(error.cause, ""))
    except FarmError as error:
        return Check(name, False, error.detail, error.fix or "")


def _python(settings: Settings) -> tuple[bool, str, str]:
    return sys.version_info >= (3, 11), sys.version.split()[0], "install Python 3.11 or later"


def _packages(settings: Settings) -> tuple[bool, str, str]:
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    missing = [name for name, version in versions.items() if version is None]
    shown = ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
    return not missing, shown, f"pip install {' '.join(missing)}"


def _database(settings: Settings) -> tuple[bool, str, str]:
    from sqlalchemy.engine import make_url

    from farm.db import connect, required_triggers, triggers

    shown = make_url(settings.database_url).render_as_string(hide_password=True)
    engine = connect(settings.database_url, read_only=True)
    missing = required_triggers(engine) - triggers(engine)
    trouble = f"{shown} is not migrated, or its triggers were changed"
    return not missing, trouble if missing else shown, "`farm up` mends it"


def _store(settings: Settings) -> tuple[bool, str, str]:
    from farm.store import open_store

    store = open_store(settings.store_url)
    key = store.put(b"farm doctor was here")
    store.delete(key)
    return True, f"{settings.store_url} can be written", ""


def _home(settings: Settings) -> tuple[bool, str, str]:
    """A new one is its user's alone; one that was there before may still be open."""
    if not settings.home.exists():
        return True, f"{settings.home} is not there yet", ""
    if settings.home.stat().st_mode & EVERYONE:
        return (
            False,
            f"{settings.home} is open to every user of this machine",
            f"chmod go-rwx {shlex.quote(str(settings.home))}",
        )
    return True, f"{settings.home} is closed to others", ""


def _disk(settings: Settings) -> tuple[bool, str, str]:
    folder = settings.home.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return free >= ROOM, f"{free / 2**30:.1f} GiB free at {folder}", "make room, or set FARM_HOME to a larger disk"


def _api(settings: Settings) -> tuple[bool, str, str]:
    from farm.client import FarmClient

    with FarmClient(settings.api_url) as client:
        try:
            client.ready()
        except Unavailable as error:
            if missing := error.more.get("missing"):
                return False, f"{settings.api_url} answers, but is not ready: {', '.join(missing)}", STARTED
            raise
    return True, f"ready at {settings.api_url}", ""


def _port(settings: Settings) -> tuple[bool, str, str]:
    if port_is_free(settings.host, settings.port):
        return True, f"{settings.host}:{settings.port} is free", ""
    from farm.client import FarmClient

    with FarmClient(settings.own_url) as client:
        client.get("/healthz")
    return True, f"{settings.host}:{settings.port} is the farm's", ""


def family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def port_is_free(host: str, port: int) -> bool:
    with socket.socket(family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _signer(settings: Settings) -> tuple[bool, str, str]:
    from provenance.client import SignerClient

    health = SignerClient(settings.signer_socket, timeout=5.0).health()
    return True, f"answers on {settings.signer_socket}, renews its key {health['renew_at'][:10]}", ""


def _ray(settings: Settings) -> tuple[bool, str, str]:
    from actors.cluster import reach

    return True, f"answers at {reach(settings)}", ""


def _models(settings: Settings) -> tuple[bool, str, str]:
    from pathlib import Path

    from actors.models import models_table

    rows = models_table(Path(settings.models) if settings.models else None)
    ready = [row["name"] for row in rows if row["ready"]]
    return bool(ready), f"ready: {', '.join(ready) or 'none'}", "`farm models ls` says which files are missing"


CHECKS: dict[str, Callable[[Settings], tuple[bool, str, str]]] = {
    "python": _python,
    "packages": _packages,
    "models": _models,
    "home": _home,
    "disk": _disk,
    "database": _database,
    "store": _store,
    "port": _port,
    "signer": _signer,
    "ray": _ray,
    "api": _api,
}
