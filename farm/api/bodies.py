"""Request bodies, taken in as they arrive, onto the disk beyond their first MiB."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

import anyio
from anyio.to_thread import run_sync
from fastapi import Request
from starlette.requests import ClientDisconnect

from farm.checking import refuse_large
from farm.errors import BadInput, TooLarge, TooSlow, Unavailable

IN_MEMORY = 1 << 20  # a larger body goes to the disk while it comes
IDLE_S = 30.0  # a sender that says nothing for so long is let go


async def chunks(request: Request, limit: int, what: str) -> AsyncIterator[bytes]:
    refuse_large(request.headers.get("content-length"), limit, what)
    size, stream = 0, request.stream()
    while True:
        try:
            with anyio.fail_after(IDLE_S):
                chunk = await anext(stream, None)
        except ClientDisconnect as error:
            raise BadInput(f"the sender left before the end of {what}", fix="send it again") from error
        except TimeoutError as error:
            fix = "have all of it ready, in a file say, and send it again without a pause"
            raise TooSlow(f"nothing more of {what} came for {IDLE_S:g} s", fix=fix) from error
        if chunk is None:
            return
        size += len(chunk)
        if size > limit:
            raise TooLarge(f"{what} is larger than {limit / 2**20:.3g} MiB", fix="send less at a time")
        yield chunk


async def spool(request: Request, file: BinaryIO, limit: int, what: str) -> None:
    """To the disk, in a thread, so that a slow disk does not hold up others."""
    async for chunk in chunks(request, limit, what):
        await run_sync(file.write, chunk)


@contextmanager
def room_for(what: str) -> Iterator[BinaryIO]:
    """A file of its own, which goes with the block. A full disk may show itself as late as when it is closed."""
    try:
        with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY) as file:
            yield cast(BinaryIO, file)
    except OSError as error:
        raise Unavailable(f"no room for {what} on this machine: {error.strerror}", fix="send it again later") from error
