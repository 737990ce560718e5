"""`farm submit` and `farm download`: a batch from a file to the farm, and its images back into a folder."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farm.commands.output import progress
from farm.errors import BadInput
from farm.lines import decode

if TYPE_CHECKING:
    from farm.client import FarmClient

REFERENCE = re.compile(r"up_[0-9a-f]{32}\Z|job:|line:")  # anything else is a path
EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}


def submit(client: FarmClient, file: str, **options: Any) -> dict[str, Any]:
    """Pictures that lines name by path, relative to the file, are uploaded on the way."""
    if file == "-":
        return _send(client, sys.stdin.buffer, Path(), options)
    path = Path(file)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not there"
        raise BadInput(f"{file} {what}", field="FILE", fix="give a file of JSON lines, or - for standard input")
    options.setdefault("name", path.stem)
    with path.open("rb") as lines:
        return _send(client, lines, path.parent, options)


def _send(client: FarmClient, lines: Iterable[bytes], folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """All is read and uploaded before the lines are sent, because a farm waits for nobody who pauses meanwhile. A
    picture that cannot be uploaded is its line's fault, told with all that the farm finds."""
    without: dict[int, str] = {}
    try:
        with tempfile.TemporaryFile() as batch:
            batch.writelines(with_uploads(lines, folder, client, without))
            batch.seek(0)
            done = client.submit(batch, **options)
    except BadInput as error:
        if "bad_lines" not in error.more:
            raise
        more = error.more | {"bad_lines": _merged(error.more["bad_lines"], without)}
        detail = error.detail.partition("; ")[0]  # the first bad line follows with the others
        fix = "no line is good" if options.get("skip_bad") else "correct them, or leave them out with --skip-bad"
        raise BadInput(detail, fix=fix, **more) from error
    return done | {"bad_lines": _merged(done["bad_lines"], without)}


def _merged(bad: list[dict[str, Any]], without: dict[int, str]) -> list[dict[str, Any]]:
    """What the farm says of a path that was sent to it as it stood makes way for why it was."""
    here = [{"line": line, "field": "image", "reason": reason} for line, reason in without.items()]
    there = [row for row in bad if row["field"] != "image" or row["line"] not in without]
    return sorted((*there, *here), key=lambda row: row["line"])


def with_uploads(lines: Iterable[bytes], folder: Path, client: FarmClient, without: dict[int, str]) -> Iterator[bytes]:
    """A line whose picture cannot be uploaded goes on as it is, which the farm refuses; `without` says why."""
    uploaded: dict[str, str | BadInput] = {}
    for number, line in enumerate(lines, 1):
        values = _with_path(line)
        if values is not None:
            image = values["image"]
            if image not in uploaded:
                uploaded[image] = _upload(client, folder / image)
            found = uploaded[image]
            if isinstance(found, str):
                yield json.dumps(values | {"image": found}).encode() + b"\n"
                continue
            without[number] = str(found)
        yield line if line.endswith(b"\n") else line + b"\n"


def _with_path(line: bytes) -> dict[str, Any] | None:
    """The fields of a line whose image is a path. Others go on as they are: the farm says what is wrong."""
    if b'"image"' not in line:
        return None
    try:
        values = decode(line)
    except ValueError:
        return None
    image = values.get("image")
    return values if isinstance(image, str) and image and not REFERENCE.match(image) else None


def _upload(client: FarmClient, path: Path) -> str | BadInput:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return BadInput(f"no file {path}", fix="paths are relative to the batch's file")
    except (OSError, ValueError) as error:
        return BadInput(f"{str(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}")
    try:
        return str(client.upload(path.name, data)["id"])
    except BadInput as error:
        return BadInput(f"{path}: {error.detail}", fix=error.fix)


def download(client: FarmClient, batch_id: int, folder: Path) -> list[dict[str, Any]]:
    """The published images, and index.jsonl with a line for every job, those of other batches too."""
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder} is a file", field="DIR", fix="give a folder")
    folder.mkdir(parents=True, exist_ok=True)
    rows = _indexed(folder / "index.jsonl")
    jobs = progress(client.pages(f"/api/batches/{batch_id}/jobs"), client.batch(batch_id)["jobs"], "downloading")
    fetched = [_fetch(client, job, folder) for job in jobs]
    for row in fetched:
        rows[row["id"]] = {name: value for name, value in row.items() if name != "reason"}
    lines = (json.dumps(rows[id_], ensure_ascii=False) + "\n" for id_ in sorted(rows))
    _replace(folder / "index.jsonl", "".join(lines).encode())
    return fetched


def _indexed(index: Path) -> dict[int, dict[str, Any]]:
    """What an earlier download left, by job."""
    try:
        rows = [json.loads(line) for line in index.read_bytes().splitlines()] if index.exists() else []
        return {int(row["id"]): row for row in rows}
    except (ValueError, TypeError, KeyError) as error:
        raise BadInput(f"{index} is no index of downloads", field="DIR", fix="give another folder") from error


def _fetch(client: FarmClient, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    row = {name: job[name] for name in ("id", "name", "prompt", "seed", "state")}
    row |= {"file": None, "sha256": None, "verdict": job["verdict"], "reason": job["reason"]}
    if job["state"] == "published":
        name = f"{job['id']}.{EXTENSIONS[job['mime']]}"
        row |= {"file": name, "sha256": _save(client, job, folder / name)}
    return row


def _save(client: FarmClient, job: dict[str, Any], path: Path) -> str:
    """A file that is there already, whole, is not fetched again."""
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == job["sha256"]:
        return str(job["sha256"])
    data = client.image(job["id"])
    _replace(path, data)
    return hashlib.sha256(data).hexdigest()


def _replace(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.replace(path)
