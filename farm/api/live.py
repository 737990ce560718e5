"""What happened, as it happens: server-sent events with replay, one project's alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from farm import events
from farm.access import Deed, may
from farm.api.callers import Caller, TheFarm, caller
from farm.api.jobs import shown_progress
from farm.errors import BadInput, Unauthorized
from farm.tables import MAX_ID

router = APIRouter(tags=["events"])
POLL_S, STEPS_S = 0.5, 1.0
AT_ONCE = 500
DIGITS = 18  # of the number of an event: more would fit no database
Number = Annotated[int | None, Query(ge=0, le=MAX_ID)]


def first_seq(after: Number = None, last_event_id: Annotated[str, Header()] = "") -> int | None:
    """Where to start: after the last event the reader has seen. Named by neither header nor parameter: from now on."""
    if not last_event_id:
        return after
    if not last_event_id.isdecimal() or len(last_event_id) > DIGITS:
        raise BadInput("must be the number of an event", field="Last-Event-ID", fix="send the last `id:` you got")
    return int(last_event_id)


@router.get("/events", response_class=EventSourceResponse)
async def follow(
    request: Request,
    farm: TheFarm,
    who: Caller,
    start: Annotated[int | None, Depends(first_seq)],
    batch: Number = None,
) -> AsyncIterator[ServerSentEvent]:
    """Follow what happens, as server-sent events; Last-Event-ID or `after` replays what was missed.

    Between them `progress` tells how far each running job is, at most once a second.
    """
    engine = farm.queue.engine
    seen = await run_in_threadpool(events.last_seq, engine) if start is None else start
    steps: dict[int, float] = {}  # when what was told of each running job was new
    told = 0.0
    yield ServerSentEvent(comment="following", retry=2000)
    while not request.app.state.stopping.is_set() and await run_in_threadpool(_still_known, request):
        rows = await run_in_threadpool(events.read, engine, seen, who.project_id, AT_ONCE)
        for row in rows:
            seen = row["seq"]
            told_to = row["kind"] not in events.FOR_OPERATORS or may(who, Deed.OPERATE)
            if told_to and (batch is None or row["batch_id"] == batch):
                yield ServerSentEvent(id=str(seen), event=row["kind"], data=_shown(row))
        if time.monotonic() >= told + STEPS_S:
            told = time.monotonic()
            running = await run_in_threadpool(farm.insights.running, who.project_id, AT_ONCE, batch)
            for row in running:  # without an id: a reader that resumes asks for what is kept, and this is not
                if steps.get(row["job_id"]) != row["updated_at"]:
                    yield ServerSentEvent(event="progress", data=_shown_steps(row))
            steps = {row["job_id"]: row["updated_at"] for row in running}
        if len(rows) < AT_ONCE:
            await asyncio.sleep(POLL_S)


def _still_known(request: Request) -> bool:
    """A key that is revoked ends what it started."""
    try:
        caller(request)
    except Unauthorized:
        return False
    return True


def _shown_steps(row: dict[str, Any]) -> dict[str, Any]:
    about = {"kind": "progress", "batch_id": row["batch_id"], "job_id": row["job_id"], "created_at": row["updated_at"]}
    return about | {"data": shown_progress(row)}


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    shown = {name: row[name] for name in ("seq", "kind", "batch_id", "job_id", "created_at")}
    return shown | {"data": {name: value for name, value in row["data"].items() if name != "owner"}}
