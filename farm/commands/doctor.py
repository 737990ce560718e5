"""`farm doctor`: what a farm needs on this machine, and how to mend what is missing."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from farm.commands.beforehand import database_fix, default_model, gate, port_is_free, ready_models
from farm.commands.output import as_json
from farm.commands.session import open_store
from farm.errors import FarmError, Fault, Unavailable
from farm.job import Cause
from farm.waiting import in_words

if TYPE_CHECKING:
    from farm.config import Settings

PACKAGES = ("torch", "ray", "transformers", "open_clip_torch", "c2pa-python", "fastapi", "sqlmodel", "pillow")
ROOM = 2 << 30
EVERYONE = stat.S_IRWXO  # a group may be meant: that of a signer with a user of its own
COUNT_GPUS = "import torch; print(torch.cuda.device_count())"  # in a child: torch is slow to load
COUNT_S = 120.0
FIXES = {
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
        return Check(name, False, error.detail, FIXES.get(error.cause) or _started(settings))
    except FarmError as error:
        return Check(name, False, error.detail, error.fix or "")
    except Exception as error:  # a check that breaks has found something, and the others go on
        said = " ".join(str(error).split())
        return Check(name, False, f"{type(error).__name__}: {said}", "is a setting that it reads wrong?")


def _started(settings: Settings) -> str:
    return f"is it running? `farm up` starts it, and {settings.home / 'log'} says why it ended"


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

    from farm.db import connect, reading, required_triggers, triggers, version

    url = make_url(settings.database_url)
    shown = url.render_as_string(hide_password=True)
    engine = connect(settings.database_url, read_only=True)
    try:
        with reading(engine) as connection:
            version(connection)
        missing = required_triggers(engine) - triggers(engine)
    except Fault as error:
        there = url.get_backend_name() != "sqlite" or Path(url.database or "").exists()
        return False, f"{shown}: {error.detail}", database_fix(url, error.detail) if there else "`farm up` makes it"
    trouble = f"{shown} is not migrated, or its triggers were changed"
    return not missing, trouble if missing else shown, "`farm up` mends it"


def _store(settings: Settings) -> tuple[bool, str, str]:
    store = open_store(settings)
    if not settings.store and not settings.home.exists():
        return True, f"{settings.store_url} is not there yet", ""
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
                fix = f"see the lines above; {settings.home / 'log'} says since when and why"
                return False, f"{settings.api_url} answers, but waits for {in_words(missing)}", fix
            raise
    return True, f"ready at {settings.api_url}", ""


def _port(settings: Settings) -> tuple[bool, str, str]:
    if port_is_free(settings.host, settings.port):
        return True, f"{settings.host}:{settings.port} is free", ""
    from farm.client import FarmClient

    with FarmClient(settings.own_url) as client:
        client.get("/healthz")
    return True, f"{settings.host}:{settings.port} is the farm's", ""


def _signer(settings: Settings) -> tuple[bool, str, str]:
    from provenance.client import SignerClient, check_path

    check_path(settings.signer_socket)
    health = SignerClient(settings.signer_socket, timeout=5.0).health()
    stamps = health["timestamps"]
    told = f"answers on {settings.signer_socket}, renews its key {health['renew_at'][:10]}, time stamps: {stamps}"
    return not stamps.startswith("missing"), told, "see that the authority in FARM_TIMESTAMPS answers"


def _ray(settings: Settings) -> tuple[bool, str, str]:
    from actors.cluster import reach

    return True, f"answers at {reach(settings)}", ""


def _models(settings: Settings) -> tuple[bool, str, str]:
    if settings.models and not Path(settings.models).is_dir():
        return False, f"FARM_MODELS names no folder {settings.models}", "correct it, or unset it"
    ready = ready_models(settings)
    default = default_model(settings, ready)
    told = f"a line that names none means {default}" if default else "each line must name one, or FARM_DEFAULT_MODEL"
    return bool(ready), f"ready: {', '.join(ready) or 'none'}; {told}", "`farm models ls` says which files are missing"


def _work(settings: Settings) -> tuple[bool, str, str]:
    """What keeps the dispatchers from work, in their own words."""
    from farm.db import connect
    from farm.insights import Insights

    if not settings.database and not (settings.home / "farm.db").exists():
        return True, "there was none yet", ""
    engine = connect(settings.database_url, read_only=True)
    try:
        waits = Insights(engine).held_up()
    finally:
        engine.dispose()
    return not waits, "; ".join(waits) or "no dispatcher waits for anything", "mend it: work goes on by itself then"


def _gate(settings: Settings) -> tuple[bool, str, str]:
    policy = gate(settings)
    encoder = settings.encoder or "the bundled tiny encoder"
    return True, f"policy {policy.name} ({policy.hash[:12]}), {encoder}", ""


def _policy(settings: Settings) -> tuple[bool, str, str]:
    """Whether the one in force is the one that is meant (where none is named, whatever was put in force is), and
    whether it has judged all that is shown."""
    from farm import rules
    from farm.db import connect
    from farm.rescan import count

    stands = rules.look(settings.database_url).get(rules.ACTIVE)
    if stands is None:
        return True, "none is in force yet; the first dispatcher begins with that of the settings", ""
    if settings.policy and (words := rules.differs(stands, gate(settings).document)):
        return False, words, "or let FARM_POLICY name the one in force; `farm policy ls` lists them"
    engine = connect(settings.database_url, read_only=True)
    try:
        left = count(engine, (stands.policy, stands.lists))
    finally:
        engine.dispose()
    shown = f"{stands.name} ({stands.policy[:12]}), in force by {stands.person}"
    more = f"; {left:,} pictures were judged by another, or by other hash lists" if left else ""
    return not left, shown + more, "`farm policy rescan --by NAME` judges them, or says why it cannot"


def _lists(settings: Settings) -> tuple[bool, str, str]:
    from farm import hash_lists
    from farm.db import connect, reading

    if not settings.database and not (settings.home / "farm.db").exists():
        return True, "no policy is in force yet", ""
    engine = connect(settings.database_url, read_only=True)
    try:
        with reading(engine) as connection:
            missing = hash_lists.missing(connection)
    finally:
        engine.dispose()
    if not missing:
        return True, "every hash list that the policy in force names is there", ""
    never = f"{', '.join(missing)}: never imported, so all that the policy applies them to goes to review"
    return False, never, "`farm policy lists import NAME FILE --kind sha256|pdq`"


def _appeals(settings: Settings) -> tuple[bool, str, str]:
    """Where the policy in force keeps blocked frames, whether there is a key to keep them for."""
    from farm import rules, sealed

    stands = rules.look(settings.database_url).get(rules.ACTIVE)
    concepts = json.loads(stands.document).get("concepts") or () if stands else ()
    if not any(isinstance(one.get("pixels"), dict) for one in concepts):
        return True, "no policy in force keeps what it blocks", ""
    path = sealed.chosen(settings)
    sealed.read_public(path)
    return True, f"what the policy keeps for appeals is sealed for {path}", ""


def _device(settings: Settings) -> tuple[bool, str, str]:
    """Whether what draws has the GPUs that are asked for."""
    asked = list(dict.fromkeys([settings.device, *(pool.device for pool in settings.pools if pool.device)]))
    shown = ", ".join(asked)
    if settings.ray_address or os.environ.get("RAY_ADDRESS"):
        return True, f"{shown}, on the nodes of the cluster: `farm pool plan` says what they have", ""
    wanted = "cuda" in asked
    gpus = _gpus() if wanted or any(Path("/dev").glob("nvidia[0-9]*")) else 0
    detail = f"{shown}: PyTorch sees {gpus or 'no'} GPU{'' if gpus == 1 else 's'} here"
    fix = "see that `nvidia-smi` lists one and that PyTorch is built for CUDA; or set FARM_DEVICE to auto or cpu"
    return gpus > 0 or not wanted, detail, fix


def _gpus() -> int:
    command = [sys.executable, "-W", "ignore", "-c", COUNT_GPUS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COUNT_S, check=False)
    return int(done.stdout) if done.stdout.strip().isdecimal() else 0


CHECKS: dict[str, Callable[[Settings], tuple[bool, str, str]]] = {
    "python": _python,
    "packages": _packages,
    "models": _models,
    "gate": _gate,
    "lists": _lists,
    "policy": _policy,
    "appeals": _appeals,
    "device": _device,
    "home": _home,
    "disk": _disk,
    "database": _database,
    "store": _store,
    "port": _port,
    "signer": _signer,
    "ray": _ray,
    "api": _api,
    "work": _work,
}
