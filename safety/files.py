"""The files that a policy or an encoder rests on, by their hashes."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bytes_hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def folder_hash(folder: Path) -> str:
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "no such folder", str(folder))
    return bytes_hash(json.dumps(file_hashes(folder), sort_keys=True).encode())


def file_hashes(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): file_hash(path) for path in _seen(folder)}


def _seen(folder: Path) -> Iterator[Path]:
    inside = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return (path for path in inside if not any(part.startswith(".") for part in path.relative_to(folder).parts))
