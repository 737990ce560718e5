"""`farm verify`: files, folders, standard input, or everything the farm has published, read from its own disk."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.commands.output import as_json, clean, say
from farm.commands.session import open_store
from farm.errors import BadInput, NotFound

if TYPE_CHECKING:
    from farm.config import Settings

PICTURES = {".png", ".jpg", ".jpeg", ".webp"}
TRUSTED = "Trusted"
PAGE = 500


def verify(
    paths: Annotated[list[str] | None, typer.Argument(metavar="FILE|DIR|-", help="- reads one file's bytes.")] = None,
    published: Annotated[bool, typer.Option("--published", help="All that this farm has published.")] = False,
    audit: Annotated[bool, typer.Option("--audit", help="The audit log and its signed heads.")] = False,
    trust: Annotated[Path | None, typer.Option(metavar="PEM", help="Whom to trust; left out: this farm.")] = None,
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
    if audit:
        if not verify_audit(settings, trust, json_):
            raise typer.Exit(1)
        return
    known = _trust_list(settings, trust)
    rows = _published(settings, known) if published else _files(paths or [], known)
    words: list[str] = []
    for row in rows:
        words.append(row["verdict"])
        if json_:
            as_json(row)
        else:
            print(clean(f"{row['verdict']:<15} {row['path']}: {row['sentence']}"))
    say(f"{words.count(TRUSTED)} of {len(words)} are {TRUSTED}")
    if words.count(TRUSTED) < len(words):
        raise typer.Exit(1)


def _trust_list(settings: Settings, given: Path | None) -> str:
    from provenance import keys

    if given is None:
        return keys.trust(settings.home)
    if not given.is_file():
        raise BadInput(f"no file {given}", field="--trust", fix="give certificates in PEM")
    return given.read_text()


def _files(paths: list[str], trust: str) -> Iterator[dict[str, Any]]:
    from provenance.verify import verify_files

    with tempfile.TemporaryDirectory() as folder:
        spooled = Path(folder) / "standard input"
        if "-" in paths:
            spooled.write_bytes(sys.stdin.buffer.read())
        wanted = [found for path in paths for found in ([spooled] if path == "-" else _pictures(Path(path)))]
        for file in verify_files(wanted, trust):
            shown = "-" if file.path == spooled else str(file.path)
            yield _row(shown, file.report)


def _pictures(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURES and file.is_file())
        if not found:
            raise BadInput(f"no pictures in {path}", field="DIR", fix=f"looked for {', '.join(sorted(PICTURES))}")
        return found
    if not path.exists():
        raise BadInput(f"no file {path}", field="FILE")
    return [path]


def _published(settings: Settings, trust: str) -> Iterator[dict[str, Any]]:
    """Straight from the database and the store, so that it works while the farm is stopped."""
    from provenance.limited import LimitedVerifier

    store = open_store(settings)
    with LimitedVerifier(trust) as verifier:
        for artifact in published_artifacts(settings):
            shown = f"{settings.store_url}#{artifact['key']}"
            yield _row(shown, _stored(verifier, store, artifact)) | {"job": artifact["job_id"]}


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


def _row(path: str, found: Any) -> dict[str, Any]:
    return {"path": path, "verdict": found.verdict, "codes": list(found.codes), "sentence": found.sentence}
