"""Is the process alive, can the farm work, and how much is there to do: for supervisors and for Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from fastapi import APIRouter, Response
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


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """Say that this process lives; nothing else is asked."""
    return {"state": "alive"}


@router.get("/readyz")
def readyz(farm: TheFarm) -> JSONResponse:
    """Say whether images can be made: 200, or 503 with what is missing."""
    found = _missing(farm)
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
        yield from (jobs, beats, gangs, late)
