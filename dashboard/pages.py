"""The pages. Each reads from Insights, fills a context (see contexts.py) and renders a template."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Form, Path, Query, Request
from fastapi.responses import RedirectResponse
from starlette.responses import Response
from starlette.templating import Jinja2Templates

from dashboard import contexts
from dashboard.auth import COOKIE, local_path, person, same_site
from farm.access import Access, Deed, KeyView, faults_for, may, may_see, require
from farm.checking import Checker
from farm.errors import RETRY_AFTER_S, BadInput, FarmError, Fault, NotFound, Unavailable, nearest
from farm.insights import Insights
from farm.job import State
from farm.job_queue import JobQueue
from farm.ports import Store
from farm.tables import MAX_ID

router = APIRouter()
log = logging.getLogger("farm.pages")
POLICY = "default-src 'self'; img-src 'self'; style-src 'self'; script-src 'self'; object-src 'none'; base-uri 'none'"
HEADERS = {
    "content-security-policy": f"{POLICY}; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
}
PAGE = 60
MONTH_S = 30 * 24 * 3600
Id = Annotated[int, Path(ge=1, le=MAX_ID)]
Before = Annotated[int | None, Query(ge=0, le=MAX_ID)]
After = Annotated[int, Query(ge=0, le=MAX_ID)]


@dataclass(frozen=True, slots=True)
class Pages:
    access: Access
    insights: Insights
    queue: JobQueue
    store: Store
    checker: Checker
    templates: Jinja2Templates


def the_pages(request: Request) -> Pages:
    found: Pages = request.app.state.pages
    return found


def the_person(request: Request) -> KeyView:
    return person(request, the_pages(request).access)


ThePages = Annotated[Pages, Depends(the_pages)]
Person = Annotated[KeyView, Depends(the_person)]


def render(request: Request, template: str, status: int = 200, **context: Any) -> Response:
    templates = the_pages(request).templates
    context["verify_public"] = the_pages(request).checker.public
    return templates.TemplateResponse(request, template, context, status_code=status, headers=HEADERS)


def problem_page(request: Request, error: FarmError) -> Response:
    if isinstance(error, Fault):
        log.warning("%s: %s: %s", request.url.path, error.cause, error.detail)
    answer = render(request, "error.html", error.status, problem=error.public())
    if error.status == Unavailable.status:
        answer.headers["retry-after"] = str(RETRY_AFTER_S)
    return answer


@router.get("/signin", name="signin_page")
def signin_page(request: Request, after: str = "/") -> Response:
    return render(request, "signin.html", wrong=None, after=local_path(after))


@router.post("/signin", dependencies=[Depends(same_site)])
def sign_in(
    request: Request, the: ThePages, key: Annotated[str, Form()], after: Annotated[str, Form()] = "/"
) -> Response:
    if the.access.find_key(key.strip()) is None:
        wrong = "This key is unknown or revoked."
        return render(request, "signin.html", 401, wrong=wrong, after=local_path(after))
    answer = RedirectResponse(local_path(after), 303)
    secure = request.url.scheme == "https"
    answer.set_cookie(COOKIE, key.strip(), max_age=MONTH_S, httponly=True, samesite="strict", secure=secure)
    return answer


@router.post("/signout", dependencies=[Depends(same_site)])
def sign_out() -> Response:
    answer = RedirectResponse("/signin", 303)
    answer.delete_cookie(COOKIE)
    return answer


@router.get("/")
def gallery(request: Request, the: ThePages, who: Person, before: Before = None) -> Response:
    found = the.insights.gallery(who.project_id, limit=PAGE + 1, before=before)
    images, older = contexts.page_on(found, PAGE)
    context: dict[str, Any] = {"images": images, "older": older, "newest": before is None}
    warnings = the.insights.warnings(())
    return render(request, "gallery.html", person=who, here="gallery", warnings=warnings, **context)


@router.get("/batches")
def batches(request: Request, the: ThePages, who: Person, before: Before = None) -> Response:
    found = the.insights.batches(who.project_id, before=before, limit=PAGE + 1)
    shown, older = contexts.page_on(found, PAGE)
    context: dict[str, Any] = {"batches": [contexts.batch_view(record) for record in shown], "older": older}
    warnings = dict.fromkeys(warning for record in shown for warning in record["warnings"])
    return render(request, "batches.html", person=who, here="batches", warnings=warnings, **context)


@router.get("/batches/{batch_id}")
def batch(
    request: Request, the: ThePages, who: Person, batch_id: Id, state: str | None = None, after: After = 0
) -> Response:
    if state is not None and state not in set(State):
        raise BadInput(f"unknown state {state!r}", field="state", fix=nearest(state, State))
    record = _batch(the, who, batch_id)
    found = the.insights.jobs(who.project_id, batch_id, state, after, limit=PAGE + 1)
    jobs, more = contexts.page_on(found, PAGE)
    context: dict[str, Any] = {
        "batch": contexts.batch_view(record),
        "runs": may(who, Deed.RUN),
        "jobs": jobs,
        "only": state,
        "more": more,
    }
    return render(request, "batch.html", person=who, here="batches", **context)


@router.post("/batches/{batch_id}", dependencies=[Depends(same_site)])
def act_on_batch(the: ThePages, who: Person, batch_id: Id, action: Annotated[str, Form()]) -> Response:
    _batch(the, who, batch_id)
    require(who, Deed.RUN)
    actions: dict[str, Callable[[], object]] = {
        "pause": lambda: the.queue.pause(batch_id, who.name),
        "resume": lambda: the.queue.resume(batch_id, who.name),
        "cancel": lambda: the.queue.cancel_batch(batch_id, who.name),
        "retry": lambda: the.queue.retry(batch_id=batch_id, by=who.name),
    }
    if action not in actions:
        raise BadInput(f"unknown action {action!r}", field="action", fix=nearest(action, actions))
    actions[action]()
    return RedirectResponse(f"/batches/{batch_id}", 303)


@router.get("/jobs/{job_id}")
def job(request: Request, the: ThePages, who: Person, job_id: Id) -> Response:
    record = _job(the, who, job_id)
    told = [verdict for verdict in record["verdicts"] if verdict["id"] == record["verdict_id"]]
    context: dict[str, Any] = {"job": record, "verdict": told[0] if told else None, "picture": _may_see(who, record)}
    context["held_up"] = []
    if record["state"] == State.QUEUED and may(who, Deed.OPERATE):
        context["held_up"] = the.insights.held_up()
    context["again"] = contexts.judged_again(record["verdicts"])
    # Scores would teach a submitter how to pass the gate.
    return render(request, "job.html", person=who, here="batches", scores=may(who, Deed.JUDGE), **context)


@router.get("/images/{job_id}")
def image(request: Request, the: ThePages, who: Person, job_id: Id) -> Response:
    """The signed file as it lies in the store: never encoded again, because that would break its signature."""
    record = _job(the, who, job_id)
    if not _may_see(who, record):
        raise NotFound(f"job {job_id} shows no image")
    tag = f'"{record["sha256"]}"'
    headers = {"etag": tag, "cache-control": "private, max-age=0, must-revalidate"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    name = quote(f"{record['name'] or job_id}.{record['format']}")
    headers |= {"content-disposition": f"inline; filename*=UTF-8''{name}", "x-content-type-options": "nosniff"}
    return Response(the.store.get(record["sha256"]), media_type=record["mime"], headers=headers)


def _may_see(who: KeyView, record: dict[str, Any]) -> bool:
    return record["sha256"] is not None and may_see(who, record["state"])


def _batch(the: Pages, who: KeyView, batch_id: int) -> dict[str, Any]:
    record = the.insights.batch(who.project_id, batch_id)
    if record is None:
        raise NotFound(f"no batch {batch_id} in this project")
    return record


def _job(the: Pages, who: KeyView, job_id: int) -> dict[str, Any]:
    record = the.insights.job(who.project_id, job_id)
    if record is None:
        raise NotFound(f"no job {job_id} in this project")
    return record | {"faults": faults_for(who, record["faults"])}
