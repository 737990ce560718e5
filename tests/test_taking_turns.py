"""The life of a farm with less room than models, step by step: gangs of several GPUs on several nodes come and go as
`farm.pressing` says. Whoever waits has its turn, and few gangs are loaded for it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm.lack import Amount, Lack
from farm.leasing import LaneView
from farm.ports import GangState, GangStatus
from farm.pressing import BURST, LONGEST_S, TURN, Press, Try, begun, left, press
from farm.scheduler import Scene, aged
from tests.test_scheduler import lane

STEP_S = 10.0
GROUP = 4
LOAD_S = 20.0
HELP_S = 120.0  # room that was made is kept for whom it was made


@dataclass(frozen=True)
class Size:
    """Bundles of so many GPUs, and how many gangs at most."""

    need: int = 1
    count: int = 1
    most: int = 1


@dataclass
class Alive:
    """A gang: loading until `ready_at`, then drawing groups, of one step or some, while there is work."""

    name: str
    model: str
    homes: Mapping[str, Amount]
    ready_at: float
    group: int = 1
    drawn: int = 0
    free_at: float = 0.0


@dataclass
class World:
    nodes: Mapping[str, int]
    sizes: Mapping[str, Size]
    load_s: float = LOAD_S
    now: float = 0.0
    made: int = 0
    refused: str = ""  # the model that Ray finds no room for, whatever goes
    gangs: list[Alive] = field(default_factory=list)
    lanes: list[LaneView] = field(default_factory=list)
    jobs: dict[int, int] = field(default_factory=dict)
    tries: dict[str, Try] = field(default_factory=dict)
    helped: dict[str, tuple[float, frozenset[str]]] = field(default_factory=dict)
    urgent: list[float] = field(default_factory=list)
    stood: dict[str, float] = field(default_factory=dict)
    changes: list[float] = field(default_factory=list)  # when a gang had gone for another one
    served: dict[int, float] = field(default_factory=dict)  # lane to its first group

    def submit(self, model: str, priority: int, jobs: int) -> None:
        number = len(self.lanes) + 1
        self.lanes.append(lane(number, priority=priority, created_at=self.now, model=model))
        self.jobs[number] = jobs

    def left(self, model: str) -> int:
        return sum(self.jobs[one.id] for one in self.lanes if one.model == model)

    def seekers(self) -> list[str]:
        """Models that need a gang more; those without any come first, unless room was made for others."""
        have = Counter(one.model for one in self.gangs)
        need = [name for name, size in self.sizes.items() if have[name] < min(size.most, -(-self.left(name) // GROUP))]
        return sorted(need, key=lambda name: have[name] > 0)

    def pressed(self) -> dict[str, str]:
        return {gang: one.model for one in self.tries.values() for gang in one.gangs}

    def lack(self, model: str) -> Lack:
        taken = {one.name: one.homes for one in self.gangs}
        size, free = self.sizes[model], {name: (0, gpus) for name, gpus in self.nodes.items()}
        for homes in taken.values():
            free |= {name: (0, free[name][1] - gpus) for name, (_, gpus) in homes.items()}
        fits = {name: free[name] for name, gpus in self.nodes.items() if gpus >= size.need}
        return Lack((0, size.need), size.count, fits, taken)

    def rows(self) -> list[GangStatus]:
        rows = []
        for one in self.gangs:
            loading, busy = self.now < one.ready_at, self.now < one.free_at
            state = GangState.STARTING if loading else GangState.BUSY if busy else GangState.READY
            row = GangStatus(one.model, 0, one.model, one.name, state, "", 0.0, load_s=self.load_s)
            rows.append(replace(row, ready_at=one.ready_at, drawn=one.drawn))
        for name in self.seekers():
            if not (lack := self.lack(name)).met():
                rows.append(GangStatus(name, 0, name, "", GangState.STARTING, "", 0.0, load_s=self.load_s, lack=lack))
        return rows

    def scene(self) -> Scene:
        live = [one for one in self.lanes if self.jobs[one.id]]
        flights = Counter(one.model for one in self.gangs if self.now < one.free_at)
        urgent, stood = tuple(self.urgent), dict(self.stood)
        return Scene(live, dict(self.jobs), self.rows(), self.now, flights=flights, urgent=urgent, stood=stood)

    def step(self) -> Press | None:
        scene = self.scene()
        self.tries = left(self.tries, scene)
        rests = {pool: one.until for pool, one in self.tries.items()}
        scene = replace(scene, pressed=self.pressed(), rests=rests)
        if (chosen := press(scene)) is not None:
            self.tries = begun(self.tries, chosen, scene)
            self.urgent = [*self.urgent, self.now][-BURST:] if chosen.urgent else self.urgent
        pressed = self.pressed()
        for gang, model in pressed.items():
            before = self.helped.get(model, (0.0, frozenset()))[1]
            self.helped[model] = (
                self.now + HELP_S,
                before | next(set(one.homes) for one in self.gangs if one.name == gang),
            )
        for one in [one for one in self.gangs if one.name in pressed and self.now >= one.free_at]:
            self.gangs.remove(one)
            self.changes.append(self.now)
        for model in self.seekers():
            self._place(model)
        for one in self.gangs:
            if self.now >= max(one.ready_at, one.free_at) and one.name not in pressed:
                self._draw(one)
        self.now += STEP_S
        return chosen

    def _place(self, model: str) -> None:
        """As Ray does, on as few nodes as can be."""
        size, lack, seek = self.sizes[model], self.lack(model), set(self.seekers())
        awaited = [homes for name, (until, homes) in self.helped.items() if self.now < until and name in seek - {model}]
        if model == self.refused or not lack.met() or any(homes & lack.left.keys() for homes in awaited):
            return
        homes, count = dict[str, Amount](), size.count
        for name, (_, free) in lack.left.items():
            some = min(count, free // size.need)
            count, homes = count - some, homes | ({name: (0, some * size.need)} if some else {})
        self.add(model, homes, self.now + self.load_s)
        self.helped.pop(model, None)

    def add(self, model: str, homes: Mapping[str, Amount], ready_at: float, group: int = 1) -> None:
        self.made += 1
        self.gangs.append(Alive(f"{model}.{self.made}", model, homes, ready_at, group))

    def _draw(self, one: Alive) -> None:
        self.stood[one.model] = self.now
        lanes = [lane for lane in self.lanes if lane.model == one.model and self.jobs[lane.id]]
        if (mine := max(lanes, key=lambda lane: (aged(lane, self.now), -lane.id), default=None)) is not None:
            self.jobs[mine.id] = max(0, self.jobs[mine.id] - GROUP)
            self.served.setdefault(mine.id, self.now)
            one.drawn += 1
            one.free_at = self.now + one.group * STEP_S


# Gangs of one GPU: what is submitted, and how many steps pass before the next.
arrivals = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(-2, 2), st.sampled_from([1, 4, 40, 4000])), min_size=1, max_size=8
)
gaps = st.lists(st.sampled_from([1, 3, 20, 60]), min_size=8, max_size=8)
BOUND = BURST * TURN * LOAD_S + 2 * LOAD_S + TURN * LOAD_S


def small(gpus: int) -> World:
    return World({"node": gpus}, {"a": Size(), "b": Size(), "c": Size()})


def lived(slots: int, some: Sequence[tuple[str, int, int]], waits: Sequence[int], steps: int = 150) -> World:
    """Submissions with pauses between them, and whatever follows."""
    world = small(slots)
    for (model, priority, jobs), wait in zip(some, waits, strict=False):
        world.submit(model, priority, jobs)
        for _ in range(wait):
            world.step()
    for _ in range(steps):
        world.step()
    return world


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 2), arrivals, gaps)
def test_changes_are_few_under_any_load(slots: int, some: list[tuple[str, int, int]], waits: list[int]) -> None:
    """In any stretch as long as BURST turns: BURST for priorities, one for each turn of a gang, and one at its end."""
    world = lived(slots, some, waits)
    window = BURST * TURN * LOAD_S
    idle = window / (2 * LOAD_S)  # a gang with nothing to do goes after one loading time, and another loads
    for at in world.changes:
        assert sum(at <= other < at + window for other in world.changes) <= BURST + slots * (idle + 1)


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 2), st.integers(-2, 2), st.integers(-2, 2))
def test_endless_loads_spend_their_time_drawing(slots: int, first: int, second: int) -> None:
    world = lived(slots, [("a", first, 10**9), ("b", second, 10**9), ("c", 0, 10**9)], [1, 1, 1], 600)
    loading = len(world.changes) * LOAD_S / (world.now * slots)
    assert loading <= 1 / TURN + (BURST + 1) / (BURST * TURN)


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 2), arrivals)
def test_no_lane_waits_for_ever_whatever_the_others_do(slots: int, some: list[tuple[str, int, int]]) -> None:
    """Endless work of the highest priority is already there; everyone is served once within the bound all the same."""
    world = small(slots)
    world.submit("a", 3, 10**9)
    for _ in range(100):
        world.step()
    began = world.now
    for model in "bc":
        world.submit(model, -2, 10**9)
    first = {one.model: one.id for one in world.lanes[1:]}
    for model, priority, jobs in some:
        if model == "a":
            world.submit(model, priority, jobs)
    while world.now < began + LONGEST_S + 3 * BOUND:
        world.step()
    assert set(first.values()) <= world.served.keys()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 2), arrivals, gaps)
def test_a_higher_priority_than_all_warm_work_does_not_wait(
    slots: int, some: list[tuple[str, int, int]], waits: list[int]
) -> None:
    world = small(slots)
    for (model, priority, jobs), wait in zip(some, waits, strict=False):
        world.submit(model, priority, jobs)
        for _ in range(wait):
            before, tried = world.scene(), bool(world.tries)
            chosen = world.step()
            if not tried:
                check_priority(before, chosen)


def check_priority(scene: Scene, chosen: Press | None) -> None:
    """Where one lacks room that is above all that is warm, it is helped now, unless the burst is spent, no gang has
    drawn a first group, or another one has waited for too long."""
    standing = (GangState.READY, GangState.BUSY)
    if not all(one.state in standing for one in scene.gangs if not one.lack):
        return
    best = {model: max(aged(one, scene.now) for one in scene.waiting(model)) for model in "abc" if scene.waiting(model)}
    warm = {one.model for one in scene.gangs if not one.lack}
    cold = {one.model for one in scene.gangs if one.lack}
    if not cold or not warm or warm - best.keys() or not all(one.drawn for one in scene.gangs if one.model in warm):
        return
    if any(scene.now - one.created_at >= LONGEST_S for model in cold for one in scene.waiting(model)):
        return
    highest = max(cold, key=lambda model: best[model])
    spent = sum(scene.now - at < BURST * TURN * LOAD_S for at in scene.urgent) >= BURST
    if best[highest] > max(best[model] for model in warm) and not spent:
        assert chosen is not None
        assert best[chosen.model] == best[highest]


@settings(max_examples=8, deadline=None)
@given(arrivals, gaps)
def test_with_room_for_all_nothing_is_pressed_out_and_nothing_waits(
    some: list[tuple[str, int, int]], waits: list[int]
) -> None:
    world = lived(3, some, waits)
    assert world.changes == []
    for one in world.lanes:
        others = [other for other in world.lanes if other.model == one.model and other is not one]
        ahead = any(other.id < one.id or other.priority > one.priority for other in others)
        assert ahead or world.served[one.id] <= one.created_at + LOAD_S + STEP_S


# A gang that needs the room of several

LARGE = pytest.mark.parametrize(("need", "count"), [(4, 1), (8, 1), (4, 2)])


def crowded(size: Size, seed: int, load_s: float, small: Sequence[str] = ("small",)) -> World:
    """Nodes full of gangs of one GPU that have stood for some time, each with endless work."""
    lots, per = random.Random(seed), max(4, size.need)
    nodes = {f"node-{number}": per for number in range(size.count)}
    total = per * size.count
    world = World(nodes, {"large": size} | {name: Size(most=total) for name in small}, load_s)
    world.now = 10_000.0
    for number, node in enumerate(node for node, gpus in nodes.items() for _ in range(gpus)):
        model = small[number % len(small)]
        world.add(model, {node: (0, 1)}, world.now - lots.uniform(0, 10 * load_s), 1 + lots.randrange(4))
        world.gangs[-1].drawn = 1
    return world


def wait_for(world: World, model: str, most_s: float) -> float:
    """Until it draws its first group."""
    began = world.now
    number = next(one.id for one in world.lanes if one.model == model)
    while number not in world.served and world.now < began + most_s:
        world.step()
    assert number in world.served, f"no gang of {model} after {most_s:.0f} s and {len(world.changes)} changes"
    return world.now - began


@LARGE
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000), load_s=st.sampled_from([20.0, 70.0]))
def test_a_large_gang_has_its_turn_and_each_of_the_others_goes_but_once(
    need: int, count: int, seed: int, load_s: float
) -> None:
    for priority, soon_s in ((5, 5 * STEP_S), (0, TURN * load_s + 5 * STEP_S)):
        world = crowded(Size(need, count), seed, load_s)
        world.submit("small", 0, 10**9)
        world.submit("large", priority, 10**6)
        assert wait_for(world, "large", LONGEST_S) <= soon_s + load_s
        assert len(world.changes) == need * count
        assert len(world.urgent) == (priority > 0)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000))
def test_of_two_nodes_one_is_enough(seed: int) -> None:
    world = crowded(Size(4, 2), seed, 70.0)
    world.sizes = {**world.sizes, "large": Size(4)}
    world.submit("small", 0, 10**9)
    world.submit("large", 5, 10**6)
    wait_for(world, "large", LONGEST_S)
    assert len(world.changes) == 4
    assert len({name for one in world.gangs if one.model == "large" for name in one.homes}) == 1


@pytest.mark.parametrize("priority", [0, 1, 5])
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 1000))
def test_a_large_gang_has_its_turn_where_small_ones_take_turns_all_the_time(priority: int, seed: int) -> None:
    """Their gangs are never all as old as a turn, but for those that are left alone for its sake."""
    small = [f"small-{number}" for number in range(7)]
    world = crowded(Size(4), seed, LOAD_S, small)
    world.sizes = {name: replace(size, most=1) for name, size in world.sizes.items()}
    for name in small:
        world.submit(name, 0, 10**9)
    for _ in range(60):
        world.step()
    before, began = len(world.changes), world.now
    world.submit("large", priority, 10**6)
    world.step()
    ahead = aged(world.lanes[0], world.now) - aged(world.lanes[-1], world.now)
    assert ahead == 1 - priority
    bound = (LONGEST_S if ahead > 0 else 0) + 3 * TURN * LOAD_S  # of its equals, those who waited before it go first
    wait_for(world, "large", bound)
    turns = (world.now - began) / (TURN * LOAD_S) + 1
    assert len(world.changes) - before <= 4 * turns + 4


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 1000), priority=st.integers(0, 2))
def test_a_large_gang_has_its_turn_in_a_stream_of_little_work_for_many_models(seed: int, priority: int) -> None:
    """There is always one that has nothing to do, and someone who waits for its room."""
    lots, small = random.Random(seed), [f"small-{number}" for number in range(12)]
    world = crowded(Size(4), seed, LOAD_S, small)
    world.sizes = {name: replace(size, most=1) for name, size in world.sizes.items()}
    world.submit("large", priority, 10**6)
    while 1 not in world.served and world.now < 10_000.0 + LONGEST_S:
        if lots.random() < 0.5:
            world.submit(lots.choice(small), 0, lots.choice([1, 4, 20]))
        world.step()
    assert world.served[1] <= 10_000.0 + 2 * TURN * LOAD_S + 10 * STEP_S


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 1000), first=st.integers(-2, 2), second=st.integers(-2, 2))
def test_large_and_small_gangs_spend_their_time_drawing(seed: int, first: int, second: int) -> None:
    world = crowded(Size(4), seed, LOAD_S, ["a", "b"])
    world.sizes = {**world.sizes, "other": Size(2)}
    for model, priority in (("a", 0), ("b", first), ("large", second), ("other", second)):
        world.submit(model, priority, 10**9)
    began = world.now
    for _ in range(600):
        world.step()
    loads = 4 * len(world.changes) / 4  # each GPU that went was loaded anew
    assert loads * LOAD_S / ((world.now - began) * 4) <= 1 / TURN + (BURST + 1) / (BURST * TURN)
    assert {one.model for one in world.lanes if one.id in world.served} == {"a", "b", "large", "other"}


def test_nothing_goes_for_what_cannot_be_helped_and_ever_less_often_where_ray_finds_no_room_all_the_same() -> None:
    world = crowded(Size(4), 1, LOAD_S)
    world.sizes = {**world.sizes, "large": Size(5)}
    world.submit("small", 0, 10**9)
    world.submit("large", 5, 10**6)
    for _ in range(300):
        world.step()
    assert world.changes == []
    world.sizes, world.refused = {**world.sizes, "large": Size(4)}, "large"
    for _ in range(2000):
        world.step()
    sets = sorted(set(world.changes))
    assert len(world.changes) % 4 == 0
    assert len(world.changes) <= 4 * 14, sets  # in five hours and a half
