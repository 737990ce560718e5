"""`farm submit` and `farm download`: a batch from a file to the farm, and its images back into a folder."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farm.commands.output import progress
from farm.errors import BadInput

if TYPE_CHECKING:
    from farm.client import FarmClient

REFERENCES = ("up_", "job:", "line:")
EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}


def submit(client: FarmClient, file: str, **options: Any) -> dict[str, Any]:
    """Pictures that lines name by path, relative to the file, are uploaded on the way."""
    if file == "-":
        return client.submit(with_uploads(sys.stdin.buffer, Path(), client), **options)
    path = Path(file)
    if not path.is_file():
        raise BadInput(f"no file {file}", field="FILE", fix="give a file of JSON lines, or - for standard input")
    options.setdefault("name", path.stem)
    with path.open("rb") as lines:
        return client.submit(with_uploads(lines, path.parent, client), **options)


def with_uploads(lines: Iterable[bytes], folder: Path, client: FarmClient) -> Iterator[bytes]:
    uploaded: dict[Path, str] = {}
    for number, line in enumerate(lines, 1):
        values = _with_path(line)
        if values is None:
            yield line if line.endswith(b"\n") else line + b"\n"
            continue
        path = (folder / values["image"]).resolve()
        if path not in uploaded:
            uploaded[path] = _upload(client, path, f"line {number}: image")
        yield json.dumps(values | {"image": uploaded[path]}).encode() + b"\n"


def _with_path(line: bytes) -> dict[str, Any] | None:
    """The fields of a line whose image is a path. Others go on as they are: the farm says what is wrong."""
    if b'"image"' not in line:
        return None
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    image = values.get("image") if isinstance(values, dict) else None
    return values if isinstance(image, str) and image and not image.startswith(REFERENCES) else None


def _upload(client: FarmClient, path: Path, where: str) -> str:
    if not path.is_file():
        raise BadInput(f"no file {path}", field=where, fix="paths are relative to the batch's file")
    try:
        return str(client.upload(path.name, path.read_bytes())["id"])
    except BadInput as error:
        raise BadInput(f"{path}: {error.detail}", field=where, fix=error.fix) from error


def download(client: FarmClient, batch_id: int, folder: Path) -> list[dict[str, Any]]:
    """The published images, and index.jsonl with a line for every job."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "index.jsonl.part").open("w") as index:
        jobs = progress(client.pages(f"/api/batches/{batch_id}/jobs"), client.batch(batch_id)["jobs"], "downloading")
        rows = [_fetch(client, job, folder, index) for job in jobs]
    (folder / "index.jsonl.part").replace(folder / "index.jsonl")
    return rows


def _fetch(client: FarmClient, job: dict[str, Any], folder: Path, index: Any) -> dict[str, Any]:
    row = {name: job[name] for name in ("id", "prompt", "seed", "state")}
    row |= {"file": None, "sha256": None, "verdict": job["verdict"]}
    if job["state"] == "published":
        name = f"{job['id']}.{EXTENSIONS[job['mime']]}"
        row |= {"file": name, "sha256": _save(client, job, folder / name)}
    index.write(json.dumps(row, ensure_ascii=False) + "\n")
    return row | {"reason": job["reason"]}


def _save(client: FarmClient, job: dict[str, Any], path: Path) -> str:
    """A file that is there already, whole, is not fetched again."""
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == job["sha256"]:
        return str(job["sha256"])
    data = client.image(job["id"])
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.replace(path)
    return hashlib.sha256(data).hexdigest()
