"""Jobs and what they made. Images leave as they lie in the store: signed, never encoded again (law 2)."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import AfterValidator

from farm.access import CASES, Deed, KeyView, faults_for, may, may_see
from farm.api.callers import Caller, Farm, Runner, TheFarm
from farm.errors import BadInput, Conflict, Forbidden, NotFound, nearest
from farm.job import State
from farm.tables import MAX_ID

router = APIRouter(tags=["jobs"])
Limit = Annotated[int, Query(ge=1, le=500)]
After = Annotated[int, Query(ge=0, le=MAX_ID)]
JobId = Annotated[int, Path(ge=1, le=MAX_ID)]
JUDGES_ONLY = {"margin", "probability", "view"}  # how close a picture came to a rule would teach how to pass it


def known_state(state: str | None) -> str | None:
    if state is not None and state not in set(State):
        raise BadInput(f"unknown state {state!r}", field="state", fix=nearest(state, State))
    return state


StateFilter = Annotated[str | None, AfterValidator(known_state), Query()]


def page(items: list[dict[str, Any]], limit: int, key: str = "id") -> dict[str, Any]:
    return {"items": items, "next": items[-1][key] if len(items) == limit else None}


@router.get("/jobs")
def list_jobs(
    farm: TheFarm, who: Caller, state: StateFilter = None, after: After = 0, limit: Limit = 100
) -> dict[str, Any]:
    """List jobs, in the order they were submitted."""
    return page(farm.insights.jobs(who.project_id, None, state, after, limit), limit)


@router.get("/jobs/{job_id}")
def get_job(farm: TheFarm, who: Caller, job_id: JobId) -> dict[str, Any]:
    """Show one job: progress, verdicts, faults, artifacts, decisions, and the jobs next to it in a chain of edits."""
    job = _own(farm, who, job_id)
    if not may(who, Deed.JUDGE):
        job["verdicts"] = [_without(row, JUDGES_ONLY) for row in job["verdicts"]]
    return job | {"progress": job["progress"] and shown_progress(job["progress"])}


@router.post("/jobs/{job_id}/cancel")
def cancel_job(farm: TheFarm, who: Runner, job_id: JobId, reason: str = Query("", max_length=500)) -> dict[str, Any]:
    """End a job that has not ended."""
    job = _own(farm, who, job_id)
    if not farm.queue.cancel_job(job_id, who.name, reason):
        raise Conflict(f"job {job_id} has ended: it is {job['state']}")
    return {"id": job_id, "state": State.CANCELLED}


@router.post("/jobs/{job_id}/retry")
def retry_job(farm: TheFarm, who: Runner, job_id: JobId) -> dict[str, Any]:
    """Put a failed job back into the queue."""
    job = _own(farm, who, job_id)
    if not farm.queue.retry(job_ids=[job_id], by=who.name):
        raise Conflict(f"job {job_id} is {job['state']}: only a failed job can be tried again")
    return {"id": job_id, "state": State.QUEUED}


@router.get("/jobs/{job_id}/prompt-proof")
def prompt_proof(farm: TheFarm, who: Runner, job_id: JobId) -> dict[str, Any]:
    """Fetch what opens the prompt's commitment in the job's image, for whoever is to check that this was the prompt.

    HMAC-SHA256 with `salt` (hexadecimal) as its key, over the UTF-8 of `prompt`, is the commitment's value.
    """
    job = _own(farm, who, job_id)
    return {"job_id": job_id, "prompt": job["prompt"], "salt": farm.prompt_salt(job_id, who.project_id)}


@router.get("/jobs/{job_id}/image", response_class=Response)
def get_image(request: Request, farm: TheFarm, who: Caller, job_id: JobId) -> Response:
    """Fetch the signed file, as it lies in the store.

    What is held, decided or withdrawn is for reviewers and operators of the project alone.
    """
    job = _own(farm, who, job_id)
    _check_may_see(job, who)
    headers = {"ETag": f'"{job["sha256"]}"', "Cache-Control": "private, no-cache", "X-Content-Type-Options": "nosniff"}
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(farm.store.get(job["sha256"]), media_type=job["mime"], headers=headers)


@router.get("/jobs/{job_id}/preview", response_class=Response)
def get_preview(farm: TheFarm, who: Caller, job_id: JobId) -> Response:
    """Fetch the newest preview of a job that is drawn now: judged and signed as its image will be, and soon gone."""
    found = farm.insights.preview(who.project_id, job_id)
    if found is None:
        raise NotFound(f"there is no preview of job {job_id} now", fix="it may come, or the image is there already")
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return Response(found["preview"], media_type=found["mime"], headers=headers)


@router.get("/artifacts")
def list_artifacts(farm: TheFarm, who: Caller, after: After = 0, limit: Limit = 100) -> dict[str, Any]:
    """List what is published, in the order of the jobs."""
    return page(farm.insights.artifacts(who.project_id, State.PUBLISHED, after, limit), limit, "job_id")


def shown_progress(row: dict[str, Any]) -> dict[str, Any]:
    """Its preview is told by its address."""
    address = f"/api/jobs/{row['job_id']}/preview" if row["preview"] else None
    return {"attempt": row["attempt"], "step": row["step"], "total": row["total"], "preview": address}


def _check_may_see(job: dict[str, Any], who: KeyView) -> None:
    state = State(job["state"])
    if state not in CASES | {State.PUBLISHED} or not job["sha256"]:
        raise Conflict(f"job {job['id']} is {state}: there is no image to show", reason=job["reason"])
    if not may_see(who, state):
        raise Forbidden(f"the image of job {job['id']} is {state}", fix="ask a reviewer of the project")


def _own(farm: Farm, who: KeyView, job_id: int) -> dict[str, Any]:
    """Another project's job is as unknown as one that never was (law 11)."""
    job = farm.insights.job(who.project_id, job_id)
    if job is None:
        raise NotFound(f"no job {job_id} in this project", fix="`farm ls BATCH` lists them")
    return job | {"faults": faults_for(who, job["faults"])}


def _without(row: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}
