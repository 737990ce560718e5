"""Files that people bring to be verified: some at a time, and beside the verdict what became of each on this farm.

Who brings one may be anybody, where the operator allows it. So there are few places, taken before a byte is read and
given back in a while whatever its sender does.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, BinaryIO

import anyio
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from sqlalchemy import Engine

from farm.errors import TooLarge, TooSlow, Unavailable
from farm.known import state_of

PLACES = 16  # files that are on their way or wait for their turn
AT_ONCE = 2  # that are opened, each in a child
MOST_S = 120.0  # that a file may take, from its first byte to its report


class Checker:
    """`verify` opens a stranger's bytes in a limited child and says what they are found to be."""

    def __init__(
        self, verify: Callable[[bytes], dict[str, Any]], engine: Engine, *, max_bytes: int, public: bool
    ) -> None:
        self.verify, self.engine, self.max_bytes, self.public = verify, engine, max_bytes, public
        self._places, self._turns = threading.Semaphore(PLACES), CapacityLimiter(AT_ONCE)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        if not self._places.acquire(blocking=False):
            raise Unavailable("too many files are being verified now", fix="send it again in a moment")
        try:
            with anyio.fail_after(MOST_S):
                yield
        except TimeoutError as error:
            raise TooSlow(f"the file was not here and verified within {MOST_S:g} s", fix="send it again") from error
        finally:
            self._places.release()

    async def check(self, file: BinaryIO) -> dict[str, Any]:
        return await run_sync(self._check, file, limiter=self._turns)

    def _check(self, file: BinaryIO) -> dict[str, Any]:
        file.seek(0)
        data = file.read()  # into memory only here, where few are at a time
        sha256 = hashlib.sha256(data).hexdigest()
        about = {"sha256": sha256, "bytes": len(data), "state": state_of(self.engine, sha256)}
        return self.verify(data) | about


def refuse_large(declared: str | None, limit: int, what: str) -> None:
    """At the door, by the length that its sender declares: nothing of it is read."""
    if declared is not None and declared.isdecimal() and (len(declared) > 18 or int(declared) > limit):
        raise TooLarge(f"{what} is larger than {limit / 2**20:.3g} MiB", fix="send less at a time")
