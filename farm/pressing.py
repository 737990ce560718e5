"""Which gangs make room together for another model's. Pure: given what waits and runs, it always answers the same.

Gangs are pressed out only where another one finds no room, all those at once that make room for it, and only by these
rules, for each of them:
- one whose model has nothing to do goes as soon as it has stood for as long as the other takes to load; one that is
  kept warm goes for a first gang alone, and after the others;
- a strictly higher aged priority need not wait, but for BURST times in as long as so many turns last;
- of equal ones each has its turn, of TURN loading times, if its work outlasts its loading or it waited PATIENCE_S;
- whatever its priority, one that waited LONGEST_S has its turn, and stands first in line.
Whoever was let in draws at least one group first. The first gang of a model alone presses out those that have work.
Where stages run apart, the first gang of one takes the room of a gang of another stage that is not the last there.

Those behind in line leave alone what the ones before them wait for, or a gang that needs the room of many would never
find all of them ripe. Where no room came of it, the next try is later each time: Ray places gangs, not this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from farm.job import megapixel_steps
from farm.lack import Lack
from farm.ports import GangState, GangStatus
from farm.scheduler import STANDING, Scene, aged

TURN = 10.0  # loading times: a tenth of the time, at most, is spent on taking turns
BURST = 3
PATIENCE_S = 120.0
LONGEST_S = 1800.0
SHORTEST_LOAD_S = 1.0
SETTLES_S = 30.0  # until it is seen whether room came of it
HOLDING = (*STANDING, GangState.STARTING)


@dataclass(frozen=True, slots=True)
class Press:
    """These gangs take no further job and go, to make room for a gang of that pool."""

    gangs: frozenset[str]
    model: str
    pool: str
    urgent: bool = False  # for its priority alone: such are counted


@dataclass(frozen=True, slots=True)
class Try:
    """What became of it, until the pool has one gang more or nobody waits for that any longer."""

    model: str
    gangs: frozenset[str]  # still to go
    had: int  # gangs of the pool, at least
    pause_s: float
    until: float  # when gangs may be pressed out for that pool again


def press(scene: Scene) -> Press | None:
    starved = {one.model for one in scene.gangs if one.lack and scene.waiting(one.model)}
    awaited: set[str] = set()
    for model in sorted(starved - set(scene.pressed.values()), key=lambda name: _in_line(scene, name)):
        for places in scene.stages(model):
            lacks = {one.pool: one.lack for one in places if one.lack and scene.now >= scene.rests.get(one.pool, 0.0)}
            found: list[tuple[tuple[object, ...], Press]] = []
            for pool, lack in lacks.items():
                rivals = [one for one in _rivals(scene, places, lack) if one.gang not in awaited]
                ripe = [one for one in rivals if _is_ripe(scene, places, one)]
                found += [(_cost(scene, some), _press(scene, places, pool, some)) for some in _sets(scene, lack, ripe)]
                if not found:
                    oldest = sorted(rivals, key=lambda one: (one.state not in STANDING, one.ready_at, one.gang))
                    awaited.update(lack.least([one.gang for one in oldest]))
            if found:
                return min(found, key=lambda one: one[0])[1]
    return None


def begun(tries: Mapping[str, Try], found: Press, scene: Scene) -> dict[str, Try]:
    before = tries.get(found.pool)
    mine = [one for one in scene.gangs if one.pool == found.pool]
    pause_s = max(SETTLES_S, TURN * min(one.load_s for one in mine))
    if before is not None:
        pause_s = max(before.pause_s, min(2 * before.pause_s, LONGEST_S))
    had = sum(bool(one.gang) for one in mine)
    return {**tries, found.pool: Try(found.model, found.gangs, had, pause_s, scene.now + pause_s)}


def left(tries: Mapping[str, Try], scene: Scene) -> dict[str, Try]:
    there, have = {one.gang for one in scene.gangs}, Counter(one.pool for one in scene.gangs if one.gang)
    some: dict[str, Try] = {}
    for pool, one in tries.items():
        if have[pool] <= one.had and scene.waiting(one.model):
            until = scene.now + one.pause_s if one.gangs & there else one.until
            some[pool] = replace(one, gangs=one.gangs & there, had=have[pool], until=until)
    return some


def _in_line(scene: Scene, model: str) -> tuple[bool, int, float, str]:
    waited_s = _waited(scene, model)
    overdue = waited_s >= LONGEST_S
    return not overdue, 0 if overdue else -_priority(scene, model), -waited_s, model


def _rivals(scene: Scene, places: Sequence[GangStatus], lack: Lack) -> list[GangStatus]:
    """Those that make room sooner or later."""
    mine = places[0].model, places[0].asked
    holding = [one for one in scene.gangs if one.state in HOLDING and one.gang and one.gang not in scene.pressed]
    others = [one for one in holding if (one.model, one.asked) != mine and lack.useful(one.gang)]
    return [one for one in others if _stands_s(scene, places, one) is not None]


def _sets(scene: Scene, lack: Lack, ripe: Sequence[GangStatus]) -> list[list[GangStatus]]:
    """Those least worth keeping that make room, of a node or of them all."""
    if not lack.met([one.gang for one in ripe]):
        return []
    by_name = {one.gang: one for one in sorted(ripe, key=lambda one: _worth(scene, one))}
    ways = [list(by_name), *([name for name in by_name if node in lack.taken[name]] for node in lack.left)]
    return [[by_name[name] for name in least] for way in ways if (least := lack.least(way))]


def _press(scene: Scene, places: Sequence[GangStatus], pool: str, some: Collection[GangStatus]) -> Press:
    model = places[0].model
    urgent = any(one.model != model and _stands_s(scene, places, one) == 0.0 for one in some)
    return Press(frozenset(one.gang for one in some), model, pool, urgent)


def _cost(scene: Scene, some: Sequence[GangStatus]) -> tuple[object, ...]:
    """Few that have work, of little priority, few that are kept, few that are busy; then few, and old ones."""
    work, priority, kept, busy, ready_at, names = zip(*(_worth(scene, one) for one in some), strict=True)
    return sum(work), max(priority), sum(kept), sum(busy), len(some), max(ready_at), sorted(names)


def _worth(scene: Scene, one: GangStatus) -> tuple[bool, int, bool, bool, float, str]:
    """The least worth keeping first."""
    best = _priority(scene, one.model) if scene.waiting(one.model) else 0
    works = bool(scene.waiting(one.model))
    return works, best, one.kept, one.state is GangState.BUSY, one.ready_at, one.gang


def _is_ripe(scene: Scene, places: Sequence[GangStatus], rival: GangStatus) -> bool:
    stands_s = _stands_s(scene, places, rival)
    if stands_s is None or rival.state not in STANDING or scene.now - rival.ready_at < stands_s:
        return False
    return rival.drawn > 0 or rival.model == places[0].model or not _works(scene, rival.model)


def _stands_s(scene: Scene, places: Sequence[GangStatus], rival: GangStatus) -> float | None:
    """How long it may stand before it makes room for them; None: as long as it likes."""
    model, load_s = places[0].model, max(SHORTEST_LOAD_S, min(one.load_s for one in places))
    if rival.model == model:
        beside = [one for one in scene.gangs if (one.model, one.asked) == (model, rival.asked)]
        spare = [one for one in beside if one.state in STANDING and one.gang not in scene.pressed]
        last = max(spare, key=lambda one: _worth(scene, one), default=rival)
        return None if rival is last or any(one.gang for one in places) else 0.0
    if not _works(scene, rival.model):
        return None if rival.kept and scene.standing(places) else load_s
    if scene.standing(places):
        return None
    ours = _priority(scene, model)
    theirs = _priority(scene, rival.model) if scene.waiting(rival.model) else ours
    if ours > theirs and sum(scene.now - at < BURST * TURN * load_s for at in scene.urgent) < BURST:
        return 0.0
    waited_s, work_s = _waited(scene, model), _work(scene, model) * min(one.pace_s for one in places)
    pays = ours >= theirs and (work_s >= load_s or waited_s >= PATIENCE_S)
    return TURN * load_s if pays or waited_s >= LONGEST_S else None


def _works(scene: Scene, model: str) -> bool:
    return bool(scene.waiting(model) or scene.flights.get(model))


def _work(scene: Scene, model: str) -> float:
    return sum(scene.jobs[lane.id] * megapixel_steps(lane.shape_key) for lane in scene.waiting(model))


def _priority(scene: Scene, model: str) -> int:
    return max(aged(lane, scene.now) for lane in scene.waiting(model))


def _waited(scene: Scene, model: str) -> float:
    oldest = min(lane.created_at for lane in scene.waiting(model))
    return scene.now - max(oldest, scene.stood.get(model, 0.0))
