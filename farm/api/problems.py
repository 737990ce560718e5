"""Every error leaves as an RFC 9457 problem document, whoever raised it."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from farm.errors import RETRY_AFTER_S, BadInput, FarmError, Fault

MEDIA_TYPE = "application/problem+json"
FIXES = {
    404: "see /openapi.json for the routes",
    405: "see /openapi.json for what this route takes",
}
CLOSED = {"Connection": "close"}  # what comes later is the rest of a body that nobody reads
HEADERS = {
    401: {"WWW-Authenticate": "Bearer"},
    408: CLOSED,
    413: CLOSED,
    503: {"Retry-After": str(RETRY_AFTER_S)},
}
log = logging.getLogger("farm.api")


def install(app: FastAPI) -> None:
    app.add_middleware(NoNul)
    app.add_exception_handler(FarmError, _farm_error)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _crash)


class NoNul:
    """Refuses U+0000 in a path or a query: PostgreSQL keeps no text with it, no file's name holds it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        nul = "\0" in scope.get("path", "") or b"%00" in scope.get("query_string", b"")
        refusal = response(BadInput("the address holds the character U+0000", fix="remove it")) if nul else None
        await (refusal or self.app)(scope, receive, send)


def response(error: FarmError) -> JSONResponse:
    """Whoever meets an outage is told to come again."""
    document = error.public()
    status = int(document["status"])
    return JSONResponse(document, status, headers=HEADERS.get(status), media_type=MEDIA_TYPE)


async def _farm_error(request: Request, error: Any) -> JSONResponse:
    if isinstance(error, Fault):
        log.warning("%s %s: %s: %s", request.method, request.url.path, error.cause, error.detail)
    return response(error)


async def _validation(_: Request, error: Any) -> JSONResponse:
    problems = [{"field": str(one["loc"][-1]), "reason": one["msg"]} for one in error.errors()]
    first = problems[0]
    document = _document(422, "The request is not right", first["reason"])
    return JSONResponse(document | {"field": first["field"], "errors": problems}, 422, media_type=MEDIA_TYPE)


async def _http(request: Request, error: Any) -> JSONResponse:
    status = error.status_code
    detail = f"{request.method} {request.url.path}: {error.detail}"
    document = _document(status, HTTPStatus(status).phrase, detail)
    if status in FIXES:
        document["fix"] = FIXES[status]
    return JSONResponse(document, status, headers=error.headers, media_type=MEDIA_TYPE)


async def _crash(request: Request, error: Exception) -> JSONResponse:
    log.error("%s %s crashed", request.method, request.url.path, exc_info=error)
    document = _document(500, "The farm failed", f"{type(error).__name__}: the farm's log says more")
    return JSONResponse(document, 500, media_type=MEDIA_TYPE)


def _document(status: int, title: str, detail: str) -> dict[str, Any]:
    return {"type": "about:blank", "title": title, "status": status, "detail": detail}
