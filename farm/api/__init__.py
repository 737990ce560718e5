"""The farm over HTTP: `create_app` builds the application, a module holds the routes of each kind of thing."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import CapacityLimiter
from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import APIRoute

from farm.api import batches, health, jobs, live, pool, problems, uploads, verify
from farm.api.callers import Farm, no_unknown_parameters

OPENERS = 4  # pictures of strangers that are opened at the same time, each in a child of its own


def create_app(farm: Farm) -> FastAPI:
    app = create_app_for_schema()
    app.state.farm, app.state.stopping = farm, threading.Event()
    app.state.openers, app.state.look = CapacityLimiter(OPENERS), health.Look()
    return app


def create_app_for_schema() -> FastAPI:
    """The routes alone, without a farm behind them."""
    app = FastAPI(title="Farm", docs_url=None, redoc_url=None, lifespan=_lifespan)
    problems.install(app)
    api = APIRouter(prefix="/api", dependencies=[Depends(no_unknown_parameters)])
    for module in (uploads, batches, jobs, live, pool, verify):
        api.include_router(_told(module.router))
    app.include_router(api)
    app.include_router(_told(health.router))
    return app


def _told(router: APIRouter) -> APIRouter:
    """A route's summary is the first line of its docstring."""
    for route in router.routes:
        if isinstance(route, APIRoute) and route.description:
            route.summary = route.description.split("\n")[0]
    return router


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    app.state.stopping.set()
