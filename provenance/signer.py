"""The signer: a process of its own, alone with the keys, behind a Unix socket that only its own user can open,
or a group.

    POST /sign          job_id attempt owner width height, body: RGB pixels -> the signed file
    POST /sign-preview  the same, of a small picture of a job that is still drawn
    POST /sign-blocked  the same, of a frame that was blocked and that the policy keeps in quarantine
    POST /approve       job_id decision_id -> the held file with the step of its approval
    POST /audit-head    seq sha256 -> a detached ES256 signature over a head of the audit chain
    GET  /salt          job_id project_id -> the salt of a job's prompt commitment
    GET  /healthz

It reads the database and the store and writes neither. Refusals are problem documents with status 403, and are logged.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import uvicorn
from anyio import CapacityLimiter, to_thread
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from farm.config import Settings, load
from farm.db import connect
from farm.errors import BadInput, Conflict, FarmError, Fault
from farm.ports import Frame, Signed
from farm.store import open_store
from provenance.client import LABEL_HEADER, MANIFEST_HEADER, check_path
from provenance.notary import Notary

MAX_SIDE = 16384
log = logging.getLogger("farm.signer")
P = ParamSpec("P")
T = TypeVar("T")


async def posted(
    request: Request, width: int = Query(ge=1, le=MAX_SIDE), height: int = Query(ge=1, le=MAX_SIDE)
) -> Frame:
    return Frame(width, height, await _body(request, width * height * 3))


Posted = Annotated[Frame, Depends(posted)]


def create_app(notary: Notary) -> FastAPI:
    app = FastAPI(title="Farm signer", docs_url=None, redoc_url=None, openapi_url=None, lifespan=_closing(notary))
    limiter = CapacityLimiter(os.cpu_count() or 1)

    async def threaded(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await to_thread.run_sync(lambda: work(*args, **kwargs), limiter=limiter)

    @app.post("/sign")
    async def sign(job_id: int, attempt: int, owner: str, frame: Posted) -> Response:
        return _file(await threaded(notary.sign, job_id, attempt, owner, frame))

    @app.post("/sign-preview")
    async def sign_preview(job_id: int, attempt: int, owner: str, frame: Posted) -> Response:
        return _file(await threaded(notary.sign_preview, job_id, attempt, owner, frame))

    @app.post("/sign-blocked")
    async def sign_blocked(job_id: int, attempt: int, frame: Posted) -> Response:
        return _file(await threaded(notary.sign_blocked, job_id, attempt, frame))

    @app.post("/approve")
    async def approve(job_id: int, decision_id: int) -> Response:
        return _file(await threaded(notary.approve, job_id, decision_id))

    @app.post("/audit-head")
    async def audit_head(seq: int, sha256: str) -> dict[str, str]:
        return {"signature": await threaded(notary.sign_audit_head, seq, sha256)}

    @app.get("/salt")
    async def salt(job_id: int, project_id: str) -> dict[str, str]:
        return {"salt": await threaded(notary.prompt_salt, job_id, project_id)}

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return await threaded(notary.keyring.health)

    app.add_exception_handler(FarmError, _problem)
    app.add_exception_handler(RequestValidationError, _wrong_request)
    return app


def serve(settings: Settings) -> None:
    """Run until told to stop. The database need not be there yet: until it is, requests say that it is down."""
    notary = Notary(settings, connect(settings.database_url, read_only=True), open_store(settings.store_url))
    path = settings.signer_socket
    with listen(path) as listener:
        log.info("the signer listens on %s", path)
        config = uvicorn.Config(create_app(notary), log_config=None, access_log=False)
        uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def listen(path: Path) -> Iterator[socket.socket]:
    """A socket file that is never open to others, not even for the moment between bind and chmod; in a folder with the
    setgid bit it is open to that folder's group.

    The lock beside it goes with the process that holds it, however that ends; then the file left behind is stale.
    """
    check_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("w") as lock, socket.socket(socket.AF_UNIX) as listener:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(f"another signer serves {path}", fix="stop it first, or set FARM_SIGNER") from error
        path.unlink(missing_ok=True)
        shared = path.parent.stat().st_mode & stat.S_ISGID  # whoever made that folder chose whose group may ask
        before = os.umask(0o117 if shared else 0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        yield listener


async def _body(request: Request, expected: int) -> bytes:
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > expected:
            break
    if len(data) != expected:
        raise BadInput(f"the body is not the {expected} bytes of this width and height", field="body")
    return bytes(data)


def _file(signed: Signed) -> Response:
    headers = {MANIFEST_HEADER: signed.manifest_sha256, LABEL_HEADER: signed.label}
    return Response(signed.data, media_type=signed.mime, headers=headers)


async def _problem(request: Request, error: Exception) -> Response:
    """Every answer that is not a signature says why, to the asker and in the log."""
    problem: dict[str, Any] = error.problem() if isinstance(error, FarmError) else {"status": 500}
    if isinstance(error, Fault):
        problem["cause"] = error.cause
    log.warning("%s %s not done: %s", request.url.path, dict(request.query_params), problem.get("detail"))
    return JSONResponse(problem, problem["status"], media_type="application/problem+json")


async def _wrong_request(request: Request, error: Exception) -> Response:
    first: dict[str, Any] = error.errors()[0] if isinstance(error, RequestValidationError) else {}
    wrong = BadInput(first.get("msg", "wrong request"), field=str(first.get("loc", ["", "request"])[-1]))
    return await _problem(request, wrong)


def _closing(notary: Notary) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        notary.close()

    return lifespan


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    serve(load())
