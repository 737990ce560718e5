"""`farm demo`: a bundled batch from submission to verified images, on a farm that it starts if none runs."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.commands.output import as_json, say, table

if TYPE_CHECKING:
    from farm.client import FarmClient
    from farm.config import Settings

COLUMNS = ["job", "prompt", "state", "verdict", "provenance", "file"]


def demo(
    json_: Annotated[bool, typer.Option("--json", help="End with one JSON line.")] = False,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the images go.")] = Path("demo-out"),
) -> None:
    """Make the bundled batch: text to image, edits, two blocked, two held; then verify every image."""
    from farm import config
    from farm.commands.session import open_client
    from farm.commands.starting import running

    began = time.monotonic()
    settings = config.load()
    with running(settings) as own, open_client(own) as client:
        counts, rows = _make(client, own, out)
    artifacts = [_artifact(row) for row in rows if row["file"]]
    if json_:
        as_json({"jobs": counts, "artifacts": artifacts, "seconds": round(time.monotonic() - began, 1)})
    else:
        table(rows, COLUMNS)
        for row in rows:
            if row["reason"]:
                print(f"job {row['job']} is {row['state']}: {row['reason']}")
        _where_next(settings, out)
    if counts.get("failed") or not artifacts or any(row["provenance"] not in ("", "Trusted") for row in rows):
        raise typer.Exit(1)


def _make(client: FarmClient, settings: Settings, out: Path) -> tuple[dict[str, int], list[dict[str, Any]]]:
    from farm.commands import submitting
    from farm.commands.session import follow

    lines = resources.files("farm.demo").joinpath("batch.jsonl").read_bytes().splitlines(keepends=True)
    batch = client.submit(lines, name="demo", again=True)
    say(f"batch {batch['id']}: {batch['lines']} lines, {batch['jobs']} jobs (a line with n: 2 is two jobs)")
    done = follow(client, batch["id"])
    jobs = submitting.download(client, batch["id"], out)
    return done["counts"], _verified(client, settings, jobs, out)


def _verified(client: FarmClient, settings: Settings, jobs: list[dict[str, Any]], out: Path) -> list[dict[str, Any]]:
    """Held images too: they are signed wherever they rest, and an operator may see them."""
    from provenance import keys
    from provenance.limited import LimitedVerifier

    rows = []
    with LimitedVerifier(keys.trust(settings.home)) as verifier:
        for job in jobs:
            file, provenance = out / job["file"] if job["file"] else None, ""
            if file or job["state"] == "held":
                provenance = verifier.verify(file.read_bytes() if file else client.image(job["id"])).verdict
            row = {"job": job["id"], "prompt": job["prompt"], "state": job["state"], "verdict": job["verdict"]}
            rows.append(row | {"provenance": provenance, "file": str(file or ""), "reason": job["reason"]})
    return rows


def _artifact(row: dict[str, Any]) -> dict[str, Any]:
    return {"job": row["job"], "path": row["file"], "verdict": row["verdict"], "provenance": row["provenance"]}


def _where_next(settings: Settings, out: Path) -> None:
    farm = _farm()
    steps = {
        f"verify {shlex.quote(str(out))}": "check their provenance again",
        "up": f"pages at {settings.api_url}, key in {settings.home / 'key'}",
        "submit BATCH.jsonl": "make your own",
        "models ls": "what real weights need",
    }
    width = max(len(step) for step in steps)
    print(f"\nThe images are in {out}, listed in {out / 'index.jsonl'}. Where to go next:")
    for step, words in steps.items():
        print(f"  {farm} {step:<{width}}  {words}")


def _farm() -> str:
    """What to type for this command: its name where the shell finds it, else where it lies."""
    if shutil.which("farm"):
        return "farm"
    beside = Path(sys.executable).with_name("farm")
    return shlex.quote(str(beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside))
