"""Mounts the pages on the farm's application."""

from __future__ import annotations

import re
from collections.abc import Awaitable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from fastapi.staticfiles import StaticFiles
from markupsafe import Markup, escape
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.templating import Jinja2Templates

from dashboard import live, pages, verifying
from dashboard.auth import SignInFirst
from farm.access import Access
from farm.checking import Checker
from farm.errors import BadInput, FarmError, NotFound
from farm.insights import Insights
from farm.job_queue import JobQueue
from farm.ports import Store

HERE = Path(__file__).parent
BACKTICKS = re.compile("`([^`]+)`")


def mount(app: FastAPI, *, access: Access, insights: Insights, queue: JobQueue, store: Store, checker: Checker) -> None:
    templates = Jinja2Templates(HERE / "templates")
    templates.env.filters |= {"iso": _iso, "day": _day, "code": _code}
    app.state.pages = pages.Pages(access, insights, queue, store, checker, templates)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    app.include_router(pages.router, include_in_schema=False)
    app.include_router(verifying.router, include_in_schema=False)
    app.include_router(live.router, include_in_schema=False)
    _send_to_sign_in(app)
    _show_errors_as_pages(app)


def _send_to_sign_in(app: FastAPI) -> None:
    """A browser that asked for a page; everyone else gets the problem document."""
    document = app.exception_handlers[FarmError]

    async def answer(request: Request, error: Any) -> Response:
        if "text/html" not in request.headers.get("accept", ""):
            return await cast(Awaitable[Response], document(request, error))
        return RedirectResponse(f"/signin?after={quote(request.url.path)}", 303)

    app.add_exception_handler(SignInFirst, answer)


def _show_errors_as_pages(app: FastAPI) -> None:
    """A browser that asked for a page gets one; everyone else the problem document, as before."""
    for kind in (FarmError, HTTPException, RequestValidationError):
        document = app.exception_handlers.get(kind)

        async def answer(request: Request, error: Any, document: Any = document) -> Response:
            asked_for_page = "text/html" in request.headers.get("accept", "")
            if document is not None and not asked_for_page:
                return cast(Response, await document(request, error))
            return pages.problem_page(request, _told(error))

        app.add_exception_handler(kind, answer)


def _told(error: Exception) -> FarmError:
    if isinstance(error, FarmError):
        return error
    if isinstance(error, HTTPException) and error.status_code == NotFound.status:
        return NotFound("there is no such page")
    return BadInput("this address or form is not right", fix="go back and try again")


def _code(text: str) -> Markup:
    """What stands in backticks, in words that the CLI prints too, is something to type."""
    return Markup(BACKTICKS.sub(r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped before


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
