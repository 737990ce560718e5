"""Which lane is served next, and when a gang makes room for another model: priority kept, projects in turn, nobody
starved, no thrashing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from farm import scheduler
from farm.leasing import AGEING_S, LaneView
from farm.ports import Demand, GangState, GangStatus
from farm.scheduler import BURST, LONGEST_S, PATIENCE_S, TURN, Press, Scene, demands, lease_seconds, order, press

lanes = st.builds(
    LaneView,
    id=st.integers(1, 10**6),
    project_id=st.sampled_from(["a", "b", "c"]),
    batch_id=st.integers(1, 100),
    model=st.sampled_from(["tiny", "flux1-dev"]),
    shape_key=st.just("tiny/128x128/8/text"),
    priority=st.integers(-5, 5),
    created_at=st.floats(0, 10_000),
)
several = st.lists(lanes, max_size=12, unique_by=lambda lane: lane.id)
NOW = 100_000.0
LOAD_S = 20.0


def lane(id_: int, project: str = "a", priority: int = 0, created_at: float = 0.0, model: str = "tiny") -> LaneView:
    return LaneView(id_, project, 1, model, f"{model}/128x128/8/text", priority, created_at)


def standing(model: str, state: GangState = GangState.READY, **more: object) -> GangStatus:
    """A gang that has stood long enough for any change."""
    facts: dict[str, object] = {"drawn": 1, "load_s": LOAD_S, "ready_at": NOW - TURN * LOAD_S}
    return GangStatus(model, 0, model, f"{model}.1", state, "a job", 0.0, **(facts | more))  # type: ignore[arg-type]


def lacking(model: str, *rivals: str, **more: float) -> GangStatus:
    """A place that finds no room."""
    words = "room in the cluster"
    one = GangStatus(model, 0, model, "", GangState.STARTING, words, 0.0, lacks_room=True, rivals=rivals, load_s=LOAD_S)
    return replace(one, **more)  # type: ignore[arg-type]


def of_lanes(some: list[LaneView], now: float = 0.0, warm: tuple[str, ...] = (), **more: object) -> Scene:
    gangs = tuple(standing(model) for model in warm)
    return Scene(some, dict.fromkeys((one.id for one in some), 1), gangs, now, **more)  # type: ignore[arg-type]


# The order of lanes


@given(several, st.randoms())
def test_the_order_holds_every_lane_once_and_not_the_order_of_asking(some: list[LaneView], random: object) -> None:
    shuffled = list(some)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert order(of_lanes(some, 10_000, ("tiny",))) == order(of_lanes(shuffled, 10_000, ("tiny",)))
    assert Counter(order(of_lanes(some, 10_000))) == Counter(some)


@given(several, st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(0, 9)))
def test_of_equal_age_the_higher_priority_always_goes_first(some: list[LaneView], running: dict[str, int]) -> None:
    same_age = [lane(one.id, one.project_id, one.priority, 0.0, one.model) for one in some]
    priorities = [one.priority for one in order(of_lanes(same_age, warm=("tiny",), running=running))]
    assert priorities == sorted(priorities, reverse=True)


def test_of_equal_priority_the_project_with_least_running_goes_first() -> None:
    assert order(of_lanes([lane(1, "a"), lane(2, "b", created_at=1.0)], 2.0, running={"a": 3}))[0].project_id == "b"


def test_a_warm_model_is_preferred_but_not_over_another_projects_turn() -> None:
    cold, warm = lane(1, model="flux1-dev"), lane(2, model="tiny", created_at=1.0)
    assert order(of_lanes([cold, warm], 2.0, ("tiny",)))[0] is warm
    other = lane(3, "b", model="flux1-dev", created_at=1.0)
    assert order(of_lanes([other, warm], 2.0, ("tiny",), running={"a": 1}))[0] is other


@given(st.integers(0, 20))
def test_nothing_starves_behind_a_stream_of_fresh_urgent_work(head_start: int) -> None:
    old = lane(1, priority=0, created_at=0.0)
    now = (head_start + 1) * AGEING_S
    fresh = lane(2, priority=head_start, created_at=now)
    assert order(of_lanes([old, fresh], now))[0] is old


def test_nobody_takes_jobs_whose_gang_is_still_to_come_and_one_finds_out_why_it_does_not() -> None:
    scene = of_lanes([lane(1, model="cold"), lane(2, model="tiny")])
    for state in (GangState.STARTING, GangState.GONE, GangState.DRAINING, GangState.SICK):
        coming = replace(scene, gangs=[standing("cold", state), standing("tiny")])
        assert [one.id for one in order(coming)] == [2]
    failed = standing("cold", GangState.GONE, cause="weights_missing")
    assert {one.id for one in order(replace(scene, gangs=[failed, standing("tiny")]))} == {1, 2}
    unseen = standing("cold", GangState.LACKING)
    assert {one.id for one in order(replace(scene, gangs=[unseen, standing("tiny")]))} == {1, 2}
    elsewhere = replace(standing("cold"), place=1)
    assert {one.id for one in order(replace(scene, gangs=[failed, elsewhere, standing("tiny")]))} == {1, 2}


def test_an_empty_lane_is_tried_though_its_gang_is_to_come_for_that_closes_it() -> None:
    scene = replace(of_lanes([lane(1, model="cold")], warm=()), gangs=[standing("cold", GangState.STARTING)])
    assert order(scene) == []
    assert [one.id for one in order(replace(scene, jobs={}))] == [1]


def test_a_model_with_all_that_its_gangs_can_take_leaves_the_rest_to_others() -> None:
    many, few = lane(1, priority=9, model="tiny"), lane(2, model="flux1-dev")
    scene = of_lanes([many, few], warm=("tiny", "flux1-dev"), flights={"tiny": 3})
    assert [one.id for one in order(scene)] == [2, 1]
    assert [one.id for one in order(replace(scene, flights={"tiny": 2}))] == [1, 2]


def test_a_model_whose_stages_run_apart_is_warm_with_a_gang_of_each() -> None:
    encoder = replace(standing("cold"), gang="cold.2", asked="cold/encode")
    scene = of_lanes([lane(1, model="cold")])
    assert order(replace(scene, gangs=[encoder, standing("cold", GangState.STARTING)])) == []
    assert len(order(replace(scene, gangs=[encoder, standing("cold")]))) == 1
    assert len(order(replace(scene, gangs=[encoder, standing("cold", GangState.GONE, cause="gang_died")]))) == 1
    both = rivals([COLD], [WARM], gangs=[standing("tiny"), encoder, lacking("cold", "tiny.1")])
    assert press(both) == Press("tiny.1", "cold")  # the first of its stage


def test_what_keeps_a_model_supplied_is_counted_in_the_gangs_that_draw() -> None:
    words = replace(standing("tiny"), gang="tiny.9", asked="tiny/encode")
    gangs = [words, *(replace(standing("tiny"), gang=f"tiny.{number}", asked="tiny") for number in range(4))]
    scene = of_lanes([lane(1, priority=9, model="tiny"), lane(2, model="flux1-dev")], flights={"tiny": 8})
    assert [one.id for one in order(replace(scene, gangs=gangs))] == [1, 2]
    assert [one.id for one in order(replace(scene, gangs=gangs, flights={"tiny": 9}))] == [2, 1]


# When a gang makes room


def rivals(mine: list[LaneView], theirs: list[LaneView], **more: object) -> Scene:
    """`cold` lacks the room that a gang of `tiny` holds."""
    gangs = [standing("tiny"), lacking("cold", "tiny.1")]
    some = [*mine, *theirs]
    facts: dict[str, object] = {"jobs": {one.id: 10**6 for one in some}, "gangs": gangs, "now": NOW}
    return Scene(some, **(facts | more))  # type: ignore[arg-type]


COLD, WARM = lane(1, created_at=NOW - 1, model="cold"), lane(2, created_at=NOW - 1)


def test_where_nothing_lacks_room_nothing_is_pressed_out() -> None:
    scene = rivals([COLD], [])
    assert press(scene) == Press("tiny.1", "cold")
    assert press(replace(scene, gangs=[standing("tiny"), standing("cold", GangState.STARTING)])) is None
    assert press(replace(scene, gangs=[standing("tiny"), lacking("cold", "elsewhere.1")])) is None
    assert press(replace(scene, pressed={"tiny.1": "cold"})) is None


def test_a_gang_with_nothing_to_do_goes_once_it_stood_as_long_as_the_other_loads() -> None:
    young = [standing("tiny", ready_at=NOW - LOAD_S + 1), lacking("cold", "tiny.1")]
    assert press(rivals([COLD], [], gangs=young)) is None
    assert press(rivals([COLD], [], flights={"tiny": 1}, gangs=young)) is None
    assert press(rivals([COLD], [])) is not None


def test_equal_priorities_take_turns_where_the_work_outlasts_the_loading_or_has_waited() -> None:
    assert press(rivals([COLD], [WARM])) == Press("tiny.1", "cold")
    few = rivals([COLD], [WARM], jobs={1: 1, 2: 10})
    assert press(few) is None
    patient = lane(1, created_at=NOW - PATIENCE_S, model="cold")
    assert press(rivals([patient], [WARM], jobs={1: 1, 2: 10})) is not None
    assert press(rivals([patient], [WARM], jobs={1: 1, 2: 10}, stood={"cold": NOW - 1})) is None
    young = standing("tiny", ready_at=NOW - TURN * LOAD_S + 1)
    assert press(rivals([COLD], [WARM], gangs=[young, lacking("cold", "tiny.1")])) is None


def test_a_strictly_higher_priority_need_not_wait_but_for_its_rivals_first_group() -> None:
    high = replace(COLD, priority=1)
    fresh = standing("tiny", GangState.BUSY, ready_at=NOW - 1)
    scene = rivals([high], [WARM], gangs=[fresh, lacking("cold", "tiny.1")])
    assert press(scene) == Press("tiny.1", "cold", urgent=True)
    assert press(replace(scene, gangs=[replace(fresh, drawn=0), scene.gangs[1]])) is None
    assert press(replace(scene, urgent=[NOW - 1] * BURST)) is None
    assert press(replace(scene, urgent=[NOW - BURST * TURN * LOAD_S] * BURST)) is not None


def test_a_lower_priority_waits_long_but_not_for_ever() -> None:
    higher = replace(WARM, priority=100)
    assert press(rivals([COLD], [higher])) is None
    assert press(rivals([replace(COLD, created_at=NOW - LONGEST_S)], [higher])) == Press("tiny.1", "cold")


def test_a_further_gang_presses_out_only_what_has_nothing_to_do() -> None:
    further = [standing("tiny"), standing("cold"), replace(lacking("cold", "tiny.1"), place=1)]
    assert press(rivals([replace(COLD, priority=9)], [WARM], gangs=further)) is None
    assert press(rivals([COLD], [], gangs=further)) == Press("tiny.1", "cold")


def test_a_gang_that_is_kept_goes_after_the_others_and_for_a_first_gang_alone() -> None:
    kept, other = standing("tiny", kept=True), replace(standing("other", ready_at=NOW - LOAD_S), gang="other.1")
    assert press(rivals([COLD], [], gangs=[kept, lacking("cold", "tiny.1")])) == Press("tiny.1", "cold")
    both = rivals([COLD], [], gangs=[kept, other, lacking("cold", "tiny.1", "other.1")])
    assert press(both) == Press("other.1", "cold")


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 3)), max_size=6), st.integers(-2, 2))
def test_none_that_is_kept_goes_that_another_may_grow(some: list[tuple[bool, bool, int]], priority: int) -> None:
    others = [
        replace(standing("tiny" if idle else "busy", kept=kept, drawn=drawn), gang=f"other.{number}")
        for number, (idle, kept, drawn) in enumerate(some)
    ]
    further = replace(lacking("cold", *(one.gang for one in others)), place=1)
    mine, theirs = replace(COLD, priority=priority), lane(2, created_at=NOW - 1, model="busy")
    gangs = [*others, standing("cold"), further]
    found = press(rivals([mine], [theirs], gangs=gangs))
    kept = {one.gang for one in others if one.kept}
    assert found is None or found.gang not in kept
    assert (found is not None) == any(one.model == "tiny" and one.gang not in kept for one in others)


def test_a_model_makes_room_itself_for_the_first_gang_of_a_stage_but_not_by_the_last_of_another() -> None:
    drawing = [replace(standing("cold"), gang=f"cold.{number}", asked="cold") for number in (1, 2)]
    words = replace(lacking("cold", "cold.1", "cold.2"), asked="cold/encode")
    assert press(rivals([COLD], [], gangs=[*drawing, words])) == Press("cold.1", "cold")
    assert press(rivals([COLD], [], gangs=[*drawing, words], pressed={"cold.1": "cold"})) is None
    assert press(rivals([COLD], [], gangs=[drawing[0], words])) is None
    comes = replace(standing("cold", GangState.STARTING), asked="cold/encode", place=1)
    assert press(rivals([COLD], [], gangs=[*drawing, words, comes])) is None, "a further one of that stage"


def test_the_idle_gang_goes_before_the_busy_one_and_the_higher_priority_is_helped_first() -> None:
    busy = replace(standing("other", GangState.BUSY), gang="other.1")
    scene = rivals([COLD], [WARM], gangs=[standing("tiny"), busy, lacking("cold", "tiny.1", "other.1")])
    assert press(scene) == Press("other.1", "cold")  # which has no lane at all
    third = lane(3, priority=1, created_at=NOW - 1, model="third")
    both = replace(scene, lanes=[*scene.lanes, third], jobs={**scene.jobs, 3: 5})
    assert press(replace(both, gangs=[*scene.gangs, lacking("third", "tiny.1", "other.1")])) == Press(
        "other.1", "third"
    )


def test_demand_is_what_waits_and_what_runs() -> None:
    assert demands([COLD, WARM], {1: 3, 2: 0}, ["tiny/1000x1000/2/text"]) == {
        "cold": Demand(3, 3 * 0.016384 * 8),
        "tiny": Demand(1, 2.0),
    }


# The life of a farm with less room than models, step by step

STEP_S = 10.0
GROUP = 4


@dataclass
class Slot:
    """Room for one gang: loading until `ready_at`, then drawing a group every STEP_S while there is work."""

    model: str = ""
    number: int = 0
    ready_at: float = 0.0
    drawn: int = 0

    def gang(self) -> str:
        return f"{self.model}.{self.number}"


@dataclass
class World:
    slots: list[Slot]
    models: list[str]
    now: float = 0.0
    made: int = 0
    lanes: list[LaneView] = field(default_factory=list)
    jobs: dict[int, int] = field(default_factory=dict)
    pressed: dict[str, str] = field(default_factory=dict)
    urgent: list[float] = field(default_factory=list)
    stood: dict[str, float] = field(default_factory=dict)
    changes: list[float] = field(default_factory=list)
    served: dict[int, float] = field(default_factory=dict)  # lane to its first group

    def submit(self, model: str, priority: int, jobs: int) -> None:
        number = len(self.lanes) + 1
        self.lanes.append(lane(number, priority=priority, created_at=self.now, model=model))
        self.jobs[number] = jobs

    def gangs(self) -> list[GangStatus]:
        rows = []
        for slot in (slot for slot in self.slots if slot.model):
            ready = self.now >= slot.ready_at
            state = GangState.READY if ready else GangState.STARTING
            row = standing(slot.model, state, ready_at=slot.ready_at, drawn=slot.drawn)
            rows.append(replace(row, gang=slot.gang()))
        taken = {row.model for row in rows}
        holders = [row.gang for row in rows if row.state is GangState.READY]
        full = all(slot.model for slot in self.slots)
        waiting = [model for model in self.models if full and model not in taken and self.left(model)]
        return [*rows, *(lacking(model, *holders) for model in waiting)]

    def left(self, model: str) -> int:
        return sum(self.jobs[one.id] for one in self.lanes if one.model == model)

    def scene(self) -> Scene:
        live = [one for one in self.lanes if self.jobs[one.id]]
        more = {"pressed": dict(self.pressed), "urgent": tuple(self.urgent), "stood": dict(self.stood)}
        return Scene(live, dict(self.jobs), self.gangs(), self.now, **more)  # type: ignore[arg-type]

    def step(self) -> Press | None:
        scene = self.scene()
        chosen = press(scene)
        if chosen is not None:
            self.pressed[chosen.gang] = chosen.model
            self.urgent += [self.now] if chosen.urgent else []
        for slot in self.slots:
            if slot.gang() in self.pressed:
                self._load(slot, self.pressed.pop(slot.gang()))
                self.changes.append(self.now)
            elif slot.model and self.now >= slot.ready_at:
                self._draw(slot)
            elif not slot.model and (model := next((name for name in self.models if self._homeless(name)), None)):
                self._load(slot, model)
        self.now += STEP_S
        return chosen

    def _homeless(self, model: str) -> bool:
        return bool(self.left(model)) and all(slot.model != model for slot in self.slots)

    def _load(self, slot: Slot, model: str) -> None:
        self.made += 1
        slot.model, slot.number, slot.ready_at, slot.drawn = model, self.made, self.now + LOAD_S, 0

    def _draw(self, slot: Slot) -> None:
        self.stood[slot.model] = self.now
        mine = next((one for one in order(self.scene()) if one.model == slot.model and self.jobs[one.id]), None)
        if mine is not None:
            self.jobs[mine.id] = max(0, self.jobs[mine.id] - GROUP)
            self.served.setdefault(mine.id, self.now)
            slot.drawn += 1


# What is submitted, and how many steps pass before the next.
arrivals = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(-2, 2), st.sampled_from([1, 4, 40, 4000])), min_size=1, max_size=8
)
gaps = st.lists(st.sampled_from([1, 3, 20, 60]), min_size=8, max_size=8)
BOUND = BURST * TURN * LOAD_S + 2 * LOAD_S + TURN * LOAD_S


def lived(slots: int, some: list[tuple[str, int, int]], waits: list[int], steps: int = 150) -> World:
    """Submissions with pauses between them, and whatever follows."""
    world = World([Slot() for _ in range(slots)], ["a", "b", "c"])
    for (model, priority, jobs), wait in zip(some, waits, strict=False):
        world.submit(model, priority, jobs)
        for _ in range(wait):
            world.step()
    for _ in range(steps):
        world.step()
    return world


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 2), arrivals, gaps)
def test_changes_are_few_under_any_load(slots: int, some: list[tuple[str, int, int]], waits: list[int]) -> None:
    """In any stretch as long as BURST turns: BURST for priorities, one for each turn of a gang, and one at its end."""
    world = lived(slots, some, waits)
    window = BURST * TURN * LOAD_S
    idle = window / (2 * LOAD_S)  # a gang with nothing to do goes after one loading time, and another loads
    for at in world.changes:
        assert sum(at <= other < at + window for other in world.changes) <= BURST + slots * (idle + 1)


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 2), st.integers(-2, 2), st.integers(-2, 2))
def test_two_endless_loads_spend_their_time_drawing(slots: int, first: int, second: int) -> None:
    world = lived(slots, [("a", first, 10**9), ("b", second, 10**9), ("c", 0, 10**9)], [1, 1, 1], 600)
    loading = len(world.changes) * LOAD_S / (world.now * slots)
    assert loading <= 1 / TURN + (BURST + 1) / (BURST * TURN)


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 2), arrivals)
def test_no_lane_waits_for_ever_whatever_the_others_do(slots: int, some: list[tuple[str, int, int]]) -> None:
    """Endless work of the highest priority is already there; everyone is served once within the bound all the same."""
    world = World([Slot() for _ in range(slots)], ["a", "b", "c"])
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


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 2), arrivals, gaps)
def test_a_higher_priority_than_all_warm_work_does_not_wait(
    slots: int, some: list[tuple[str, int, int]], waits: list[int]
) -> None:
    world = World([Slot() for _ in range(slots)], ["a", "b", "c"])
    for (model, priority, jobs), wait in zip(some, waits, strict=False):
        world.submit(model, priority, jobs)
        for _ in range(wait):
            before = world.scene()
            chosen = world.step()
            check_priority(before, chosen)


def check_priority(scene: Scene, chosen: Press | None) -> None:
    """Where one lacks room that is above all that is warm, it is helped now, unless the burst is spent or no gang has
    drawn a first group."""
    if scene.pressed or not all(one.state is GangState.READY for one in scene.gangs if not one.lacks_room):
        return
    best = {
        model: max(scheduler.aged(one, scene.now) for one in scene.waiting(model))
        for model in "abc"
        if scene.waiting(model)
    }
    warm = {one.model for one in scene.gangs if not one.lacks_room}
    cold = {one.model for one in scene.gangs if one.lacks_room}
    if not cold or not warm or warm - best.keys() or not all(one.drawn for one in scene.gangs if one.model in warm):
        return
    highest = max(cold, key=lambda model: best[model])
    spent = sum(scene.now - at < BURST * TURN * LOAD_S for at in scene.urgent) >= BURST
    if best[highest] > max(best[model] for model in warm) and not spent:
        assert chosen is not None
        assert best[chosen.model] == best[highest]


@settings(max_examples=12, deadline=None)
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


def test_a_lease_grows_with_the_work() -> None:
    small, large = "tiny/128x128/8/text", "flux1-dev/1024x1024/50/text"
    assert 30 < lease_seconds(30, small, 1) < lease_seconds(30, small, 4) < 60
    assert lease_seconds(30, large, 4) > 600
