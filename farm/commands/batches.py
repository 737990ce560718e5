"""What people do with batches and jobs from a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.commands.output import as_json, as_json_list, columns_of, counted, facts, say, say_bad_lines, table

if TYPE_CHECKING:
    from farm.client import FarmClient

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
BatchId = Annotated[int, typer.Argument(metavar="BATCH")]
Reason = Annotated[str, typer.Option("--reason", help="Kept with the batch.")]
Limit = Annotated[
    int | None,
    typer.Option(min=1, help="At most so many: new batches, or old jobs, first. Left out: 100; all with --json."),
]
After = Annotated[int | None, typer.Option(metavar="ID", min=1, help="Go on behind this one.")]

FEW = 100  # rows of a table that was not told how many
MOST_COLUMNS = 6  # of a table within what `farm show` tells


def submit(
    file: Annotated[str, typer.Argument(metavar="FILE", help="JSON lines; - reads standard input.")],
    name: Annotated[str | None, typer.Option(help="The batch's name; left out: the file's.")] = None,
    priority: Annotated[int, typer.Option(help="Added to that of each line.")] = 0,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad lines out instead of refusing all.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Make it once more, though the farm has it already.")] = False,
    watch_it: Annotated[bool, typer.Option("--watch", help="Follow it to its end.")] = False,
    json_: Json = False,
) -> None:
    """Submit a batch: one JSON object a line. Pictures named by path are uploaded."""
    from farm.commands import submitting
    from farm.commands.session import open_client

    options: dict[str, Any] = {"priority": priority, "skip_bad": skip_bad, "again": again}
    with open_client() as client:
        done = submitting.submit(client, file, **options | ({"name": name} if name else {}))
    if json_:
        as_json(done)
    else:
        _say_submitted(done)
    if watch_it:
        watch(done["id"])


def _say_submitted(done: dict[str, Any]) -> None:
    if done["bad_line_count"]:
        lines = "1 line is" if done["bad_line_count"] == 1 else f"{done['bad_line_count']:,} lines are"
        say(f"farm: {lines} bad and left out (`farm show {done['id']}` lists them)")
        say_bad_lines(done["bad_lines"], done["bad_line_count"])
    known = " (the project has this content already; --again makes it once more)" if done["repeated"] else ""
    print(f"batch {done['id']}: {counted(done['jobs'], 'job')}{known}")
    for warning in done["warnings"]:
        say(f"farm: {warning}")


def ls(
    batch: Annotated[int | None, typer.Argument(metavar="[BATCH]", help="A batch: list its jobs.")] = None,
    state: Annotated[str | None, typer.Option(help="Jobs in this state alone.")] = None,
    limit: Limit = None,
    after: After = None,
    json_: Json = False,
) -> None:
    """List batches, or jobs."""
    from farm.commands.session import open_client

    jobs = batch is not None or state is not None
    path = "/api/jobs" if jobs else "/api/batches"
    if batch is not None:
        path = f"/api/batches/{batch}/jobs"
    options = {"state": state} if jobs else {}
    with open_client() as client:
        if json_:
            as_json_list(client.pages(path, after, limit, **options))
            return
        most = limit or FEW
        found = list(client.pages(path, after, most + 1, **options))
        rows = found[:most]
        cut = _cut(client, rows, batch, state) if len(found) > most else None
    if jobs:
        named = ["name"] if any(row["name"] for row in rows) else []
        table(rows, ["id", *named, "state", "prompt", "model", "seed", "reason"])
    else:
        table(rows, ["id", "name", "state", "jobs", "counts", "created_at"])
        for warning in dict.fromkeys(warning for row in rows for warning in row["warnings"]):
            say(f"farm: {warning}")
    if cut:
        say(cut)


def _cut(client: FarmClient, rows: list[dict[str, Any]], batch: int | None, state: str | None) -> str:
    """That a table has not all, of how many where the farm counts them, and how to see the others."""
    told = "there are more"
    if batch is not None:
        of = client.batch(batch)
        told = f"{len(rows):,} of {of['counts'].get(state, 0) if state else of['jobs']:,}"
    return f"farm: {told}; --limit or --after {rows[-1]['id']} shows more"


def show(
    what: Annotated[str, typer.Argument(metavar="BATCH|job:ID", help="12 is a batch, job:12 a job.")],
    json_: Json = False,
) -> None:
    """Show all that is known of one batch, with its bad lines, or of one job."""
    from farm.commands.session import open_client

    job = what.removeprefix("job:")
    with open_client() as client:
        if what.startswith("job:"):
            found = client.job(_number(job))
        else:
            found = client.batch(_number(what))
            found["bad_line_list"] = list(client.pages(f"/api/batches/{what}/bad-lines"))
    if json_:
        as_json(found)
        return
    if at := found.get("progress"):
        found["progress"] = f"step {at['step']} of {at['total']}{', with a preview' if at['preview'] else ''}"
    facts({name: value for name, value in found.items() if not isinstance(value, list)})
    known = {"project_id", "batch_id"} | ({"job_id"} if what.startswith("job:") else set())
    for name, rows in found.items():
        if name == "warnings":
            for warning in rows:
                print(f"\n{warning}")
        elif isinstance(rows, list) and rows:
            print(f"\n{name.removesuffix('_list').replace('_', ' ')}:")
            _list(rows, [name for name in columns_of(rows) if name not in known])


def _list(rows: list[dict[str, Any]], columns: list[str]) -> None:
    """Rows of which much is known stand one below the other."""
    if len(columns) <= MOST_COLUMNS:
        table(rows, columns)
        return
    for number, row in enumerate(rows):
        if number:
            print()
        facts({name: row[name] for name in columns})


def watch(batch: BatchId) -> None:
    """Follow a batch to its end. Exit code 1 if a job failed."""
    from farm.commands.session import follow, open_client

    with open_client() as client:
        done = follow(client, batch)
    if done["counts"].get("failed"):
        raise typer.Exit(1)


def cancel(what: Annotated[str, typer.Argument(metavar="BATCH|job:ID")], reason: Reason = "") -> None:
    """Cancel what has not ended of a batch, or one job."""
    _deed(what, "cancel", reason=reason or None)


def retry(what: Annotated[str, typer.Argument(metavar="BATCH|job:ID")]) -> None:
    """Try the failed jobs of a batch again, or one job."""
    _deed(what, "retry")


def pause(batch: BatchId, reason: Reason = "") -> None:
    """Start no more jobs of a batch; those being drawn end."""
    _deed(str(batch), "pause", reason=reason or None)


def resume(batch: BatchId) -> None:
    """Let a paused batch go on."""
    _deed(str(batch), "resume")


def priority(batch: BatchId, value: Annotated[int, typer.Argument(metavar="PRIORITY", min=-100, max=100)]) -> None:
    """Change a batch's priority; it is added to that of each line."""
    _deed(str(batch), "priority", priority=value)


def download(batch: BatchId, folder: Annotated[Path, typer.Argument(metavar="DIR")], json_: Json = False) -> None:
    """Write a batch's published images and index.jsonl into a folder."""
    from farm.commands import submitting
    from farm.commands.session import open_client

    with open_client() as client:
        rows = submitting.download(client, batch, folder)
    if json_:
        as_json(rows)
    else:
        files = sum(row["file"] is not None for row in rows)
        print(
            f"{counted(files, 'image')} of {counted(len(rows), 'job')} in {folder}, listed in {folder / 'index.jsonl'}"
        )


def _deed(what: str, action: str, **params: Any) -> None:
    from farm.commands.session import open_client

    kind, number = ("jobs", what.removeprefix("job:")) if what.startswith("job:") else ("batches", what)
    with open_client() as client:
        done = client.post(f"/api/{kind}/{_number(number)}/{action}", **params)
    facts(done)
    if done.get("retried_jobs") == 0:
        say("farm: none of its jobs had failed; what was cancelled is drawn by `farm submit FILE --again`")


def _number(text: str) -> int:
    from farm.errors import BadInput

    if not text.isdecimal():
        raise BadInput(f"{text!r} is not a number", field="BATCH|job:ID", fix="12 is a batch, job:12 a job")
    return int(text)
