"""How a command reaches the farm, and how it follows a batch."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farm.commands.output import console, say
from farm.errors import BadInput, Unauthorized, Unavailable
from farm.job import UNSETTLED, State

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from farm.client import FarmClient
    from farm.config import Settings
    from farm.store import FsspecStore

POLL_S = 0.5
STEPS_S = 15.0  # between two lines that differ only in how far the running jobs are
PATIENCE_S = 60.0  # how long a farm may be away while a batch is followed: the supervisor starts it again


def key_path(home: Path) -> Path:
    return home / "key"


def kept_key(path: Path) -> str:
    """What lies there, a key or not; "" where nothing does."""
    return path.read_bytes().decode(errors="replace").strip() if path.exists() else ""


def open_client(settings: Settings | None = None) -> FarmClient:
    from farm import config
    from farm.client import FarmClient

    settings = settings or config.load()
    path = key_path(settings.home)
    key = settings.key.strip() or kept_key(path)
    if not key:
        raise Unauthorized("no API key", fix=f"set FARM_KEY, or run `farm up`, which writes one to {path}")
    return FarmClient(settings.api_url, key, key_from="FARM_KEY" if settings.key else str(path))


@contextmanager
def open_database(settings: Settings) -> Iterator[Engine]:
    """For a deed that needs no running farm, only its database."""
    from farm.db import connect, migrate

    engine = connect(settings.database_url)
    try:
        migrate(engine)
        yield engine
    finally:
        engine.dispose()


def open_store(settings: Settings) -> FsspecStore:
    """The store, or in words why a place of that kind cannot be used here."""
    from farm import store

    try:
        return store.open_store(settings.store_url)
    except ImportError as error:
        if settings.store.startswith(("s3:", "s3a:")):
            raise BadInput("s3fs is missing", field="store", fix="pip install 'renderfarm[s3]'") from error
        raise BadInput(str(error), field="store", fix="install it, or set FARM_STORE to another place") from error
    except ValueError as error:
        raise BadInput(str(error), field="store", fix="set FARM_STORE to a folder or s3://bucket/prefix") from error


def follow(client: FarmClient, batch_id: int) -> dict[str, Any]:
    """Until every job has ended: a progress bar on a terminal, plain lines elsewhere."""
    try:
        return _bar(client, batch_id) if sys.stderr.isatty() else _lines(client, batch_id)
    except KeyboardInterrupt:
        say(f"farm: batch {batch_id} goes on; `farm watch {batch_id}` follows it again")
        raise


def _bar(client: FarmClient, batch_id: int) -> dict[str, Any]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

    what, counts = TextColumn("{task.description}"), TextColumn("{task.fields[counts]}")
    with Progress(what, BarColumn(), MofNCompleteColumn(), counts, console=console(stderr=True)) as progress:
        task = progress.add_task(f"batch {batch_id}", counts="", total=None)
        running: dict[int, TaskID] = {}

        def show(found: dict[str, Any]) -> None:
            progress.update(task, completed=ended(found), total=found["jobs"], counts=summary(found))
            steps = {row["job_id"]: row for row in found["running"]}
            for job in running.keys() - steps.keys():
                progress.remove_task(running.pop(job))
            for job, row in steps.items():
                if job not in running:
                    running[job] = progress.add_task(f"  job {job}", counts="steps")
                progress.update(running[job], completed=row["step"], total=row["total"])

        return _poll(client, batch_id, show)


def _lines(client: FarmClient, batch_id: int) -> dict[str, Any]:
    shown, told, due = "", "", 0.0

    def show(found: dict[str, Any]) -> None:
        nonlocal shown, told, due
        line = f"batch {batch_id}: {ended(found)} of {found['jobs']}: {summary(found)}"
        steps = "".join(f"; job {row['job_id']}: step {row['step']} of {row['total']}" for row in found["running"])
        if line != shown or (steps != told and time.monotonic() >= due):
            shown, told, due = line, steps, time.monotonic() + STEPS_S
            say(line + steps)

    return _poll(client, batch_id, show)


def _poll(client: FarmClient, batch_id: int, show: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    heard = time.monotonic()
    while True:
        try:
            batch = client.batch(batch_id)
            heard = time.monotonic()
        except Unavailable:
            if time.monotonic() - heard > PATIENCE_S:
                raise
        else:
            show(batch)
            if batch["settled"]:
                return batch
        time.sleep(POLL_S)


def ended(batch: dict[str, Any]) -> int:
    return sum(count for state, count in batch["counts"].items() if State(state) not in UNSETTLED)


def summary(batch: dict[str, Any]) -> str:
    """Counts per state in the order of a job's life, and what is waited for."""
    counts = [f"{batch['counts'][state]} {state}" for state in State if batch["counts"].get(state)]
    waits = [_wait(wait["jobs"], wait["reason"]) for wait in batch.get("waits", [])[:1]]
    paused = [f"{batch['state']}"] if batch["state"] not in ("open", "settled") else []
    return "; ".join([", ".join(counts), *paused, *(waits or batch.get("warnings", [])[:1])])


def _wait(jobs: int, reason: str) -> str:
    verb = "waits" if jobs == 1 else "wait"
    what = reason.removeprefix("waits ")
    return f"{jobs} {verb} {what}" if what != reason else f"{jobs} {verb}: {reason}"
