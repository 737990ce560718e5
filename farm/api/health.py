"""Is the process alive, can the farm work, and how much is there to do: for supervisors and for Prometheus."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from farm.api.callers import Farm, TheFarm
from farm.errors import FarmError
from farm.insights import SILENT
from farm.ports import GangState
from farm.waiting import missing

router = APIRouter(tags=["health"])


ANSWER_S = 5.0  # a database that takes longer is as good as gone


class Look:
    """A look at the farm that all who ask meanwhile share: a database that hangs would take a thread for each."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: Future[list[str]] | None = None

    def begin(self, look: Callable[[], list[str]]) -> Future[list[str]]:
        with self._lock:
            if self._seen is None or self._seen.done():
                self._seen = Future()
                threading.Thread(target=_settle, args=(self._seen, look), daemon=True).start()
            return self._seen


def _settle(future: Future[list[str]], look: Callable[[], list[str]]) -> None:
    try:
        future.set_result(look())
    except BaseException as error:
        future.set_exception(error)


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Say that this process lives; nothing else is asked."""
    return {"state": "alive"}


@router.get("/readyz")
async def readyz(request: Request, farm: TheFarm) -> JSONResponse:
    """Say whether images can be made: 200, or 503 with what is missing."""
    seen = asyncio.wrap_future(request.app.state.look.begin(lambda: _missing(farm)))
    try:
        found = await asyncio.wait_for(asyncio.shield(seen), ANSWER_S)
    except TimeoutError:
        found = [f"database: no answer within {ANSWER_S:.0f} s"]
    return JSONResponse({"state": "waiting" if found else "ready", "missing": found}, 503 if found else 200)


def _missing(farm: Farm) -> list[str]:
    """Anyone may ask, so of what a process says of itself only the causes are passed on, not the details.

    The dispatcher looks at the signer and at Ray all the time, idle or not: here only the database is asked.
    """
    try:
        return missing(farm.insights.components())
    except FarmError as error:
        return [f"database: {error.title}"]


@router.get("/metrics")
def metrics(farm: TheFarm) -> Response:
    """Count for Prometheus: the whole farm's jobs, no project's own."""
    registry = CollectorRegistry()
    registry.register(_Metrics(farm))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class _Metrics(Collector):
    def __init__(self, farm: Farm) -> None:
        self.farm = farm

    def collect(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("farm_jobs", "Jobs per state.", labels=["state"])
        for state, count in self.farm.insights.farm_counts().items():
            jobs.add_metric([state], count)
        words = "Since a process was last heard of."
        beats = GaugeMetricFamily("farm_component_age_seconds", words, labels=["kind", "name"])
        for one in self.farm.insights.components():
            beats.add_metric([one["kind"], one["name"]], one["age_s"])
        gangs = GaugeMetricFamily("farm_gangs", "Places for gangs per pool and state.", labels=["pool", "state"])
        known = Counter((one["pool"], one["state"]) for one in self.farm.insights.pool())
        for pool in sorted({pool for pool, _ in known}):
            for state in (*GangState, SILENT):
                gangs.add_metric([pool, str(state)], known[pool, str(state)])
        superseded = self.farm.insights.superseded()
        late = CounterMetricFamily("farm_superseded", "Results that came too late and were dropped.", superseded)
        words = "Verdicts per stage, outcome and concept; those of rescans too, not those of illegal lists."
        said = CounterMetricFamily("farm_verdicts", words, labels=["stage", "outcome", "concept"])
        for stage, outcome, concept, count in self.farm.insights.farm_verdicts():
            said.add_metric([stage, outcome, concept], count)
        yield from (jobs, beats, gangs, late, said)
