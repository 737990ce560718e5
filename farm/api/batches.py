"""Batches: taken in as JSON lines, listed, followed, cancelled, tried again, paused."""

from __future__ import annotations

from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Path, Query, Request
from starlette.concurrency import run_in_threadpool

from farm import intake
from farm.api.bodies import room_for, spool
from farm.api.callers import Caller, Farm, Runner, TheFarm
from farm.api.jobs import After, Limit, StateFilter, page, shown_progress
from farm.errors import NotFound
from farm.intake import Receipt, Rules, Submission
from farm.lines import MAX_PRIORITY
from farm.tables import MAX_ID

router = APIRouter(prefix="/batches", tags=["batches"])
MAX_BYTES = 2 << 30
BatchId = Annotated[int, Path(ge=1, le=MAX_ID)]
Before = Annotated[int | None, Query(ge=1, le=MAX_ID)]
Name = Annotated[str, Query(max_length=200)]
Reason = Annotated[str, Query(max_length=500)]
Priority = Annotated[int, Query(ge=-MAX_PRIORITY, le=MAX_PRIORITY)]


@router.post("", status_code=201)
async def create_batch(
    request: Request,
    farm: TheFarm,
    who: Runner,
    name: Name = "",
    skip_bad: bool = False,
    again: bool = False,
    priority: Priority = 0,
) -> dict[str, Any]:
    """Take in a batch: the body is JSON lines.

    One bad line refuses all, unless `skip_bad`. What the project has already is not made once more, unless `again`.
    `warnings` say what the jobs wait for, where they cannot be made now.
    """
    submission = Submission(name, f"{who.name} ({who.id})", priority, skip_bad, again)
    with room_for("the batch") as body:
        await spool(request, body, MAX_BYTES, "the batch")
        return await run_in_threadpool(_take, farm, who.project_id, body, submission)


def _take(farm: Farm, project: str, body: BinaryIO, submission: Submission) -> dict[str, Any]:
    rules = Rules(project, farm.catalogue, farm.default_model, farm.settings.max_lines)
    receipt = intake.take(body, submission, rules, farm.queue)
    return _receipt(receipt, farm.insights.warnings(receipt.found.models))


def _receipt(receipt: Receipt, warnings: list[str]) -> dict[str, Any]:
    found = receipt.found
    return {
        "id": receipt.batch_id,
        "lines": found.lines,
        "jobs": found.jobs,
        "repeated": receipt.repeated,
        "bad_lines": [{"line": bad.line, "field": bad.field, "reason": bad.reason} for bad in found.shown],
        "bad_line_count": found.bad_lines,
        "warnings": warnings,
    }


@router.get("")
def list_batches(farm: TheFarm, who: Caller, after: Before = None, limit: Limit = 100) -> dict[str, Any]:
    """List batches, the newest first; `after` is the `next` of the page before."""
    return page(farm.insights.batches(who.project_id, before=after, limit=limit), limit)


@router.get("/{batch_id}")
def get_batch(farm: TheFarm, who: Caller, batch_id: BatchId) -> dict[str, Any]:
    """Show one batch, the count of its jobs in each state, what they wait for, and how far the running ones are."""
    batch = _own(farm, who.project_id, batch_id)
    return batch | {"running": [{"job_id": row["job_id"]} | shown_progress(row) for row in batch["running"]]}


@router.get("/{batch_id}/jobs")
def list_batch_jobs(
    farm: TheFarm,
    who: Caller,
    batch_id: BatchId,
    state: StateFilter = None,
    after: After = 0,
    limit: Limit = 100,
) -> dict[str, Any]:
    """List the jobs of a batch, in the order of its lines."""
    _own(farm, who.project_id, batch_id)
    return page(farm.insights.jobs(who.project_id, batch_id, state, after, limit), limit)


@router.get("/{batch_id}/bad-lines")
def list_bad_lines(
    farm: TheFarm, who: Caller, batch_id: BatchId, after: After = 0, limit: Limit = 100
) -> dict[str, Any]:
    """List the lines that `skip_bad` left out, and why."""
    _own(farm, who.project_id, batch_id)
    return page(farm.insights.bad_lines(who.project_id, batch_id, after, limit), limit)


@router.post("/{batch_id}/cancel")
def cancel_batch(farm: TheFarm, who: Runner, batch_id: BatchId, reason: Reason = "") -> dict[str, Any]:
    """End what has not ended; what was published or held stays."""
    _own(farm, who.project_id, batch_id)
    ended = farm.queue.cancel_batch(batch_id, who.name, reason)
    return {"id": batch_id, "state": "cancelled", "cancelled_jobs": ended}


@router.post("/{batch_id}/retry")
def retry_batch(farm: TheFarm, who: Runner, batch_id: BatchId) -> dict[str, Any]:
    """Put its failed jobs back into the queue."""
    _own(farm, who.project_id, batch_id)
    return {"id": batch_id, "retried_jobs": farm.queue.retry(batch_id=batch_id, by=who.name)}


@router.post("/{batch_id}/pause")
def pause_batch(farm: TheFarm, who: Runner, batch_id: BatchId, reason: Reason = "") -> dict[str, Any]:
    """Start no more of its jobs; those being drawn end."""
    _own(farm, who.project_id, batch_id)
    farm.queue.pause(batch_id, who.name, reason)
    return {"id": batch_id, "state": "paused"}


@router.post("/{batch_id}/resume")
def resume_batch(farm: TheFarm, who: Runner, batch_id: BatchId) -> dict[str, Any]:
    """Let a paused batch go on."""
    _own(farm, who.project_id, batch_id)
    farm.queue.resume(batch_id, who.name)
    return {"id": batch_id, "state": "open"}


@router.post("/{batch_id}/priority")
def set_priority(farm: TheFarm, who: Runner, batch_id: BatchId, priority: Priority) -> dict[str, Any]:
    """Change the batch's priority, which is added to that of each line."""
    _own(farm, who.project_id, batch_id)
    farm.queue.set_priority(batch_id, priority, who.name)
    return {"id": batch_id, "priority": priority}


def _own(farm: Farm, project: str, batch_id: int) -> dict[str, Any]:
    """Another project's batch is as unknown as one that never was (law 11)."""
    batch = farm.insights.batch(project, batch_id)
    if batch is None:
        raise NotFound(f"no batch {batch_id} in this project", fix="`farm ls` lists them")
    return batch
