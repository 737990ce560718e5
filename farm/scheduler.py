"""Which lane is served next, and when a gang makes room for another model. Pure: given what waits and what runs, it
always answers the same.

A gang is pressed out only where another model's finds no room, and only by these rules:
- one whose model has nothing to do goes as soon as it has stood for as long as the other takes to load; one that is
  kept warm goes for a first gang alone, and after the others;
- a strictly higher aged priority need not wait, but for BURST times in as long as so many turns last;
- of equal ones each has its turn, of TURN loading times, if its work outlasts its loading or it waited PATIENCE_S;
- whatever its priority, one that waited LONGEST_S has its turn.
Whoever was let in draws at least one group first. The first gang of a model alone presses out those that have work.
Where stages run apart, the first gang of one takes the room of a gang of another stage that is not the last there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from farm.job import megapixel_steps
from farm.leasing import AGEING_S, LaneView
from farm.ports import Demand, GangState, GangStatus

STEP_S_PER_MEGAPIXEL = 4.0  # a slow device's denoising step; leases are extended by heartbeats anyway
TURN = 10.0  # loading times: a tenth of the time, at most, is spent on taking turns
BURST = 3
PATIENCE_S = 120.0
LONGEST_S = 1800.0
SHORTEST_LOAD_S = 1.0
STANDING = (GangState.READY, GangState.BUSY)
NONE = (GangState.GONE, GangState.BENCHED)


@dataclass(frozen=True, slots=True)
class Press:
    """This gang takes no further job and goes, to make room for a gang of that model."""

    gang: str
    model: str
    urgent: bool = False  # for its priority alone: such are counted


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
    stood: Mapping[str, float] = field(default_factory=dict)  # model to when a gang of it was last there

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


def press(scene: Scene) -> Press | None:
    """The gang that is to go, if one is: for the model of highest aged priority that lacks room, then for the one that
    has waited longest."""
    held = set(scene.pressed.values())
    starved = {one.model for one in scene.gangs if one.lacks_room and scene.waiting(one.model)} - held
    for model in sorted(starved, key=lambda name: (-_priority(scene, name), -_waited(scene, name), name)):
        for places in scene.stages(model):
            names = {name for one in places if one.lacks_room for name in one.rivals}
            for rival in sorted(_candidates(scene, places, names), key=lambda one: _worth(scene, one)):
                if (found := _pays(scene, places, rival)) is not None:
                    return found
    return None


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


def _candidates(scene: Scene, places: Sequence[GangStatus], rivals: Collection[str]) -> list[GangStatus]:
    mine = places[0].model, places[0].asked
    standing = (one for one in scene.gangs if one.state in STANDING and one.gang not in scene.pressed)
    return [one for one in standing if one.gang in rivals and (one.model, one.asked) != mine]


def _worth(scene: Scene, one: GangStatus) -> tuple[bool, int, bool, bool, float, str]:
    """The least worth keeping first."""
    lanes = scene.waiting(one.model)
    best = _priority(scene, one.model) if lanes else 0
    return bool(lanes), best, one.kept, one.state is GangState.BUSY, one.ready_at, one.gang


def _pays(scene: Scene, places: Sequence[GangStatus], rival: GangStatus) -> Press | None:
    model = places[0].model
    load_s = max(SHORTEST_LOAD_S, min(one.load_s for one in places))
    stood_s, change = scene.now - rival.ready_at, Press(rival.gang, model)
    if rival.model == model:
        beside = [one for one in scene.gangs if (one.model, one.asked) == (model, rival.asked)]
        return change if not any(one.gang for one in places) and scene.standing(beside) > 1 else None
    waiting = scene.waiting(rival.model)
    if not waiting and not scene.flights.get(rival.model):
        return change if stood_s >= load_s and not (rival.kept and scene.standing(places)) else None
    if scene.standing(places) or not rival.drawn:
        return None
    ours = _priority(scene, model)
    theirs = _priority(scene, rival.model) if waiting else ours
    if ours > theirs and sum(scene.now - at < BURST * TURN * load_s for at in scene.urgent) < BURST:
        return replace(change, urgent=True)
    waited_s, work_s = _waited(scene, model), _work(scene, model) * min(one.pace_s for one in places)
    pays = ours >= theirs and (work_s >= load_s or waited_s >= PATIENCE_S)
    return change if stood_s >= TURN * load_s and (pays or waited_s >= LONGEST_S) else None


def _work(scene: Scene, model: str) -> float:
    return sum(scene.jobs[lane.id] * megapixel_steps(lane.shape_key) for lane in scene.waiting(model))


def _priority(scene: Scene, model: str) -> int:
    return max(aged(lane, scene.now) for lane in scene.waiting(model))


def _waited(scene: Scene, model: str) -> float:
    oldest = min(lane.created_at for lane in scene.waiting(model))
    return scene.now - max(oldest, scene.stood.get(model, 0.0))
