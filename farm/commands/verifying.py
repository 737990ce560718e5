"""`farm verify`: files, folders, standard input, or everything the farm has published, read from its own disk."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.commands.output import as_json, clean, counted, progress, say
from farm.commands.session import open_client, open_store
from farm.errors import BadInput, NotFound

if TYPE_CHECKING:
    from farm.config import Settings

PICTURES = {".png", ".jpg", ".jpeg", ".webp"}
TRUSTED = "Trusted"
PAGE = 500
TrustLists = list[tuple[str, str]]  # what each is called, and its certificates in PEM


def verify(
    paths: Annotated[list[str] | None, typer.Argument(metavar="FILE|DIR|-", help="- reads one file's bytes.")] = None,
    published: Annotated[bool, typer.Option("--published", help="All that this farm has published.")] = False,
    audit: Annotated[bool, typer.Option("--audit", help="The audit log and its signed heads.")] = False,
    trust: Annotated[
        list[Path] | None, typer.Option(metavar="PEM", help="Whom to trust, once or more; left out: this farm.")
    ] = None,
    proof: Annotated[
        Path | None, typer.Option(metavar="JSON", help="Was this the prompt? What `farm prompt-proof` said.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON line a file.")] = False,
) -> None:
    """Check the provenance of images, or the audit log. Exit code 1 unless every image is Trusted, or the log whole."""
    from farm import config
    from farm.commands.auditing import verify_audit

    given = [name for name, asked in (("files", paths), ("--published", published), ("--audit", audit)) if asked]
    if len(given) != 1:
        wrong = f"not {' and '.join(given)} at once" if given else "nothing to verify"
        raise BadInput(wrong, field="FILE|DIR|-", fix="give files, or --published, or --audit")
    settings = config.load()
    fits = _proof(proof)
    if audit:
        if len(trust or []) > 1:
            raise BadInput("the audit log has one key", field="--trust", fix="give the farm's trust/audit.pem alone")
        if not verify_audit(settings, trust[0] if trust else None, json_):
            raise typer.Exit(1)
        return
    lists = _trust_lists(settings, trust or [])
    rows = _published(settings, lists) if published else _files(settings, paths or [], lists)
    total = trusted = 0
    for row in rows:
        row["prompt_fits"] = fits(row["commitment"]) if fits else None
        total, trusted = total + 1, trusted + (row["verdict"] == TRUSTED and row["prompt_fits"] is not False)
        if json_:
            as_json(row)
        else:
            _show(row)
    say(f"{trusted} of {total} are {TRUSTED}{' and drawn from this prompt' if fits else ''}")
    if trusted < total:
        raise typer.Exit(1)


def prompt_proof(job: Annotated[int, typer.Argument(metavar="JOB")]) -> None:
    """Print a job's prompt and what opens its commitment in the image, as JSON, for `farm verify --proof`."""
    as_json(open_client().get(f"/api/jobs/{job}/prompt-proof"))


def _proof(path: Path | None) -> Callable[[str | None], bool] | None:
    """Whether a commitment is one to the prompt of this proof."""
    from provenance.manifest import commitment

    if path is None:
        return None
    try:
        said = json.loads(path.read_text())
        expected = commitment(bytes.fromhex(said["salt"]), said["prompt"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        fix = "give what `farm prompt-proof JOB` printed"
        raise BadInput(f"{path} is no proof of a prompt", field="--proof", fix=fix) from error
    return lambda found: found == expected


def _trust_lists(settings: Settings, given: list[Path]) -> TrustLists:
    from provenance import keys

    if not given:
        return [("this farm", keys.trust(settings.home))]
    for path in given:
        if not path.is_file():
            raise BadInput(f"no file {path}", field="--trust", fix="give certificates in PEM")
    return [(str(path), path.read_text(errors="replace")) for path in given]


def _files(settings: Settings, paths: list[str], lists: TrustLists) -> Iterator[dict[str, Any]]:
    from provenance import keys
    from provenance.verify import MAX_FILE, verify_files

    known = _Known(settings)
    with tempfile.TemporaryDirectory() as folder:
        spooled = Path(folder) / "standard input"
        if "-" in paths:
            spooled.write_bytes(sys.stdin.buffer.read(MAX_FILE + 1))
        places = [spooled if path == "-" else _there(Path(path)) for path in paths]
        total = sum(1 for _ in _pictures(places)) if sys.stderr.isatty() else 0  # for the bar alone
        found = verify_files(_pictures(places), _joined(lists), keys.revoked(settings.home))
        for file in progress(found, total, "Verifying"):
            shown = "-" if file.path == spooled else str(file.path)
            yield _row(shown, file.report, lists, known.state(file.sha256))


def _there(path: Path) -> Path:
    """Said at the start, not after the ten thousand files before it."""
    if not path.exists():
        raise BadInput(f"no file {path}", field="FILE")
    if path.is_dir() and next(_pictures([path]), None) is None:
        raise BadInput(f"no pictures in {path}", field="DIR", fix=f"looked for {', '.join(sorted(PICTURES))}")
    return path


def _pictures(places: Iterable[Path]) -> Iterator[Path]:
    """Folder by folder, in order: what is in memory is one folder's names, however large the tree is."""
    for place in places:
        if not place.is_dir():
            yield place
            continue
        for folder, inner, names in os.walk(place):
            inner.sort()
            files = (Path(folder, name) for name in sorted(names) if Path(name).suffix.lower() in PICTURES)
            yield from (file for file in files if file.is_file())


class _Known:
    """The farm's own state of a file, where this machine has the farm's database; elsewhere nothing is known."""

    def __init__(self, settings: Settings) -> None:
        from farm.db import connect

        there = settings.database or (settings.home / "farm.db").exists()
        self.engine = connect(settings.database_url, read_only=True) if there else None

    def state(self, sha256: str | None) -> str | None:
        from farm.db import DatabaseDown
        from farm.known import state_of

        if self.engine is None or sha256 is None:
            return None
        try:
            return state_of(self.engine, sha256)
        except DatabaseDown as error:
            say(f"what the farm knows of these files is left out: {error}")
            self.engine = None
            return None


def _published(settings: Settings, lists: TrustLists) -> Iterator[dict[str, Any]]:
    """Straight from the database and the store, so that it works while the farm is stopped."""
    from provenance import keys
    from provenance.limited import LimitedVerifier
    from provenance.revoking import revoke

    store, revoked = open_store(settings), keys.revoked(settings.home)
    with LimitedVerifier(_joined(lists)) as verifier:
        for artifact in published_artifacts(settings):
            shown = f"{settings.store_url}#{artifact['key']}"
            found = revoke(_stored(verifier, store, artifact), revoked)
            yield _row(shown, found, lists, artifact["state"]) | {"job": artifact["job_id"]}


def _stored(verifier: Any, store: Any, artifact: dict[str, Any]) -> Any:
    """Of one file that is gone or rotten; a store that is away ends the whole."""
    from farm.store import Corrupt
    from provenance import report

    try:
        data = store.get(artifact["key"])
    except NotFound:
        return report.failed(report.UNREADABLE, "farm.file", artifact["mime"])
    except Corrupt:
        return report.failed(report.INVALID, "farm.file.corrupt", artifact["mime"])
    return verifier.verify(data, artifact["mime"])


def published_artifacts(settings: Settings) -> Iterator[dict[str, Any]]:
    from sqlalchemy import select

    from farm.db import connect, reading
    from farm.insights import Insights
    from farm.tables import PROJECT

    engine = connect(settings.database_url, read_only=True)
    insights = Insights(engine)
    with reading(engine) as connection:
        projects = list(connection.execute(select(PROJECT.c.id).order_by(PROJECT.c.id)).scalars())
    for project in projects:
        after = 0
        while page := insights.artifacts(project, after=after, limit=PAGE):
            yield from page
            after = page[-1]["job_id"]


def _joined(lists: TrustLists) -> str:
    return "\n".join(pem for _, pem in lists)


def _row(path: str, found: Any, lists: TrustLists, state: str | None) -> dict[str, Any]:
    from provenance.verify import told

    return {"path": path} | told(found, lists) | {"state": state}


def _show(row: dict[str, Any]) -> None:
    """What a person wants to know of one file among many; --json has all."""
    more = [f"declared {row['declared']}"] if row["source"] else []
    more += [f"time stamp of {row['stamped_at']}"] if row["stamped_at"] else []
    more += [counted(len(row["ancestors"]), "ancestor")] if row["ancestors"] else []
    more += [f"here it is {row['state']}"] if row["state"] not in (None, "published") else []
    if row["prompt_fits"] is not None:
        more.append("drawn from this prompt" if row["prompt_fits"] else "NOT drawn from this prompt")
    name = f"job {row['job']}, {row['path'][-64:][:12]}" if "job" in row else row["path"]
    print(clean(f"{row['verdict']:<15} {name}: {row['sentence']}{''.join(f' ({one})' for one in more)}"))
