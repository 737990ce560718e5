"""The content-addressed store: a key is the SHA-256 of the bytes under it. Local files, or what fsspec opens by URL."""

from __future__ import annotations

import errno
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec

from farm.errors import FarmError, Fault, NotFound
from farm.job import Cause

NO_KEY = "0" * 64  # of no file: a store that can say so is there
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Corrupt(Fault):
    """One file rots; the store stands."""

    def __init__(self, key: str, url: str) -> None:
        super().__init__(Cause.STORE_DOWN, f"the file {key} in the store {url} is corrupt: restore it")


class FsspecStore:
    def __init__(self, url: str) -> None:
        self.fs, self.root = fsspec.core.url_to_fs(url)
        self.local = "file" in self.fs.protocol
        self.url = url

    def put(self, data: bytes) -> str:
        key = hashlib.sha256(data).hexdigest()
        with _as_fault(self.url):
            if not self._holds(key, data):
                self._write(key, data)
        return key

    def get(self, key: str) -> bytes:
        with _as_fault(self.url):
            try:
                data: bytes = self.fs.cat_file(self._path(key))
            except FileNotFoundError as error:
                raise NotFound(f"no file {key} in the store", fix="was it removed by hand? restore it") from error
        if hashlib.sha256(data).hexdigest() != key:
            raise Corrupt(key, self.url)
        return data

    def has(self, key: str) -> bool:
        with _as_fault(self.url):
            return bool(self.fs.exists(self._path(key)))

    def reach(self) -> None:
        """Cheap enough to be asked all the time: a Fault where nothing could be kept."""
        with _as_fault(self.url):
            if not self.local:
                self.fs.exists(self._path(NO_KEY))
                return
            place = Path(self.root)
            while not place.exists():
                place = place.parent
            if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "no folder that can be written", str(place))

    def delete(self, key: str) -> None:
        with _as_fault(self.url):
            if self.fs.exists(self._path(key)):
                self.fs.rm_file(self._path(key))

    def _path(self, key: str) -> str:
        return f"{self.root}/{key[:2]}/{key[2:4]}/{key}"

    def _holds(self, key: str, data: bytes) -> bool:
        """A file of the right length could still be a damaged one, so its bytes are compared."""
        path = self._path(key)
        return bool(self.fs.exists(path)) and self.fs.cat_file(path) == data

    def _write(self, key: str, data: bytes) -> None:
        if not self.local:
            self.fs.pipe_file(self._path(key), data)
            return
        # Written aside, flushed to the disk and renamed: a crash leaves the whole file or none.
        path = self._path(key)
        aside = f"{self.root}/aside/{uuid.uuid4().hex}"
        _make_private(Path(self.root))
        self.fs.makedirs(os.path.dirname(path), exist_ok=True)
        self.fs.makedirs(os.path.dirname(aside), exist_ok=True)
        try:
            with open(aside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        finally:
            if os.path.exists(aside):
                os.unlink(aside)


def _make_private(folder: Path) -> None:
    """With what is missing above it, which may be the farm's home: prompts and pictures are nobody else's."""
    for place in reversed([folder, *folder.parents]):
        if not place.exists():
            place.mkdir(0o700, exist_ok=True)


def open_store(url: str) -> FsspecStore:
    return FsspecStore(url)


@contextmanager
def _as_fault(url: str) -> Iterator[None]:
    """A store that cannot be used is nobody's fault: the work waits (law 9)."""
    try:
        yield
    except FarmError:
        raise
    except Exception as error:  # each remote file system raises kinds of its own
        full = getattr(error, "errno", None) in FULL
        cause = Cause.STORE_FULL if full else Cause.STORE_DOWN
        fix = "free some space" if full else "check that it can be reached and written"
        raise Fault(cause, f"the store {url} cannot be used: {error}: {fix}") from error
