"""Tells an open page that something of its project, or of one batch, has changed: the page then fetches itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from dashboard.auth import SignInFirst, person
from farm import events
from farm.access import KeyView
from farm.tables import MAX_ID

router = APIRouter()
POLL_S = 1.0
Batch = Annotated[int | None, Query(ge=1, le=MAX_ID)]
SILENCE = 15  # polls without news, after which a comment keeps the connection open


def _person(request: Request) -> KeyView:
    return person(request, request.app.state.pages.access)


@router.get("/live")
async def changes(
    request: Request, who: Annotated[KeyView, Depends(_person)], batch: Batch = None
) -> StreamingResponse:
    stream = _changes(request, who.project_id, batch)
    return StreamingResponse(stream, media_type="text/event-stream", headers={"cache-control": "no-store"})


def _still_known(request: Request) -> bool:
    """A key that is revoked ends what it started."""
    try:
        _person(request)
    except SignInFirst:
        return False
    return True


async def _changes(request: Request, project_id: str, batch: int | None) -> AsyncIterator[str]:
    engine = request.app.state.pages.insights.engine
    seen = await run_in_threadpool(events.last_seq, engine)
    silent = 0
    yield "retry: 2000\n\n"
    stopping = request.app.state.stopping
    while not stopping.is_set() and await run_in_threadpool(_still_known, request):
        if await request.is_disconnected():
            return
        news = await run_in_threadpool(events.read, engine, seen, project_id)
        seen = news[-1]["seq"] if news else seen
        silent = 0 if news else silent + 1
        if any(batch in (None, event["batch_id"]) for event in news):
            yield "event: change\ndata: \n\n"
        elif silent % SILENCE == 0 and silent:
            yield ": still here\n\n"
        await asyncio.sleep(POLL_S)
