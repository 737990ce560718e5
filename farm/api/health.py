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
from farm.insights import SILENT, STALE_S
from farm.ports import GangState

router = APIRouter(tags=["health"])
NEEDED = ("dispatcher",)  # without one the farm takes batches, but makes no image


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """Say that this process lives; nothing else is asked."""
    return {"state": "alive"}


@router.get("/readyz")
def readyz(farm: TheFarm) -> JSONResponse:
    """Say whether images can be made: 200, or 503 with what is missing."""
    missing = _missing(farm)
    return JSONResponse({"state": "waiting" if missing else "ready", "missing": missing}, 503 if missing else 200)


def _missing(farm: Farm) -> list[str]:
    """Anyone may ask, so of what a process says of itself only the causes are passed on, not the details.

    The dispatcher looks at the signer and at Ray all the time, idle or not: here only the database is asked.
    """
    try:
        known = farm.insights.components()
    except FarmError as error:
        return [f"database: {error.title}"]
    missing = []
    for kind in NEEDED:
        some = sorted((one for one in known if one["kind"] == kind), key=lambda one: float(one["age_s"]))
        fresh = [one for one in some if one["age_s"] < STALE_S]
        if any(one["state"] == "ready" for one in fresh):
            continue
        if fresh:
            missing.append(f"{kind}: {fresh[0]['detail'].split(':')[0]}")
        else:
            missing.append(f"{kind}: {_silent(some[0]['age_s']) if some else 'none is running'}")
    return missing


def _silent(age_s: float) -> str:
    return f"none is running, or it cannot say so: last heard of {age_s:.0f} s ago"


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
