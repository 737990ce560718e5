"""Which lane is served next. Pure: given what waits and what runs, it always answers the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from farm.job import megapixel_steps
from farm.leasing import AGEING_S, LaneView
from farm.ports import Demand, GangState, GangStatus

STEP_S_PER_MEGAPIXEL = 4.0  # a slow device's denoising step; leases are extended by heartbeats anyway
STANDING = (GangState.READY, GangState.BUSY)
NONE = (GangState.GONE, GangState.BENCHED)


@dataclass(frozen=True, slots=True)
class Scene:
    """What the farm's choices are made from."""

    lanes: Sequence[LaneView]
    jobs: Mapping[int, int]  # lane to how many may be had there
    gangs: Sequence[GangStatus]
    now: float
    running: Mapping[str, int] = field(default_factory=dict)  # project to its jobs in flight
    flights: Mapping[str, int] = field(default_factory=dict)  # model to its groups in flight
    pressed: Mapping[str, str] = field(default_factory=dict)  # gang, until it is gone, to the model it makes room for
    urgent: Sequence[float] = ()  # when gangs were pressed out for a priority
    rests: Mapping[str, float] = field(default_factory=dict)  # pool, until when no gangs are pressed out for it
    stood: Mapping[str, float] = field(default_factory=dict)  # model to when it was last warm

    def stages(self, model: str) -> list[list[GangStatus]]:
        """Its places, apart by what a job asks for there."""
        mine = sorted((one for one in self.gangs if one.model == model), key=lambda one: one.asked)
        return [list(some) for _, some in groupby(mine, key=lambda one: one.asked)]

    def standing(self, places: Iterable[GangStatus]) -> int:
        """Those whose gang may be given jobs."""
        return sum(one.state in STANDING and one.gang not in self.pressed for one in places)

    def warm(self, model: str) -> bool:
        """A job needs a gang of every stage."""
        stages = self.stages(model)
        return bool(stages) and all(self.standing(places) for places in stages)

    def draws(self, model: str) -> int:
        """Its gangs that denoise, whatever else they do."""
        return self.standing(one for one in self.gangs if one.model == model and one.asked in ("", model))

    def waiting(self, model: str) -> list[LaneView]:
        return [lane for lane in self.lanes if lane.model == model and self.jobs.get(lane.id)]


def order(scene: Scene) -> list[LaneView]:
    """The lanes to be tried now. Those of a model whose gang is still to come are not: whoever takes their jobs could
    only sit and wait. A model that keeps its gangs supplied comes after the others; then highest priority first, aged;
    then the project with fewest jobs running; then a warm model; then the oldest."""
    models = {lane.model for lane in scene.lanes}
    warm = {model: scene.warm(model) for model in models}
    coming = {model for model in models if not warm[model] and _is_coming(scene, model)}

    def rank(lane: LaneView) -> tuple[bool, int, int, bool, float, int]:
        supplied = warm[lane.model] and 2 * scene.draws(lane.model) < scene.flights.get(lane.model, 0)
        running = scene.running.get(lane.project_id, 0)
        return supplied, -aged(lane, scene.now), running, not warm[lane.model], lane.created_at, lane.id

    tried = [lane for lane in scene.lanes if lane.model not in coming or not scene.jobs.get(lane.id)]
    return sorted(tried, key=rank)


def demands(lanes: Iterable[LaneView], jobs: Mapping[int, int], flying: Iterable[str]) -> dict[str, Demand]:
    """By model, of the jobs that may be had and those in flight, whose shape keys these are."""
    shapes = [(lane.shape_key, jobs[lane.id]) for lane in lanes if jobs.get(lane.id)]
    found: dict[str, Demand] = {}
    for shape, count in [*shapes, *((shape, 1) for shape in flying)]:
        model, so_far = shape.split("/")[0], found.get(shape.split("/")[0], Demand())
        found[model] = Demand(so_far.jobs + count, so_far.work + count * megapixel_steps(shape))
    return found


def aged(lane: LaneView, now: float) -> int:
    return lane.priority + int(max(0.0, now - lane.created_at) / AGEING_S)


def lease_seconds(shortest: float, shape_key: str, jobs: int) -> float:
    """An expiry sized to the work: a lease outlasts drawing the whole group, were every heartbeat late."""
    return shortest + jobs * megapixel_steps(shape_key) * STEP_S_PER_MEGAPIXEL


def _is_coming(scene: Scene, model: str) -> bool:
    """Where nothing is known of a model, or what was there has failed, a job is to find out what is wrong."""
    stages = scene.stages(model)
    return bool(stages) and not any(all(_has_failed(one) for one in places) for places in stages)


def _has_failed(one: GangStatus) -> bool:
    return one.state is GangState.LACKING or (one.state in NONE and bool(one.cause))
