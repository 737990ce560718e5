"""The farm over HTTP: `create_app` builds the application, a module holds the routes of each kind of thing."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, Depends, FastAPI

from farm.api import batches, health, jobs, live, problems, uploads
from farm.api.callers import Farm, no_unknown_parameters


def create_app(farm: Farm) -> FastAPI:
    app = FastAPI(title="Farm", docs_url=None, redoc_url=None, lifespan=_lifespan)
    app.state.farm, app.state.stopping = farm, threading.Event()
    app.state.engine = farm.queue.engine
    problems.install(app)
    api = APIRouter(prefix="/api", dependencies=[Depends(no_unknown_parameters)])
    for module in (uploads, batches, jobs, live):
        api.include_router(module.router)
    app.include_router(api)
    app.include_router(health.router)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    app.state.stopping.set()
