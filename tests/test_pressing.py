"""When gangs make room for another model's: priority kept, none kept waiting for ever, nothing pressed out in vain."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from farm.lack import Lack
from farm.leasing import LaneView
from farm.ports import GangState, GangStatus
from farm.pressing import BURST, LONGEST_S, PATIENCE_S, SETTLES_S, TURN, Press, Try, begun, left, press
from farm.scheduler import Scene
from tests.test_scheduler import lane

NOW = 100_000.0
LOAD_S = 20.0


def standing(model: str, state: GangState = GangState.READY, **more: object) -> GangStatus:
    """A gang that has stood long enough for any change."""
    facts: dict[str, object] = {"drawn": 1, "load_s": LOAD_S, "ready_at": NOW - TURN * LOAD_S}
    return GangStatus(model, 0, model, f"{model}.1", state, "a job", 0.0, **(facts | more))  # type: ignore[arg-type]


def several(*names: str) -> list[GangStatus]:
    return [replace(standing(name.partition(".")[0]), gang=name) for name in names]


def lacking(model: str, *rivals: str, nodes: dict[str, str] | None = None, count: int = 1, need: int = 1) -> GangStatus:
    """A place that finds no room, for its rivals have a GPU each on their nodes."""
    homes = {name: (nodes or {}).get(name, "node") for name in rivals}
    lack = Lack(
        (0, need), count, dict.fromkeys(homes.values(), (0, 0)), {one: {at: (0, 1)} for one, at in homes.items()}
    )
    return GangStatus(model, 0, model, "", GangState.STARTING, "room in the cluster", 0.0, lack=lack, load_s=LOAD_S)


def gone(*gangs: str, model: str = "cold", urgent: bool = False) -> Press:
    return Press(frozenset(gangs), model, model, urgent)


def rivals(mine: list[LaneView], theirs: list[LaneView], **more: object) -> Scene:
    """`cold` lacks the room that a gang of `tiny` holds."""
    gangs = [standing("tiny"), lacking("cold", "tiny.1")]
    some = [*mine, *theirs]
    facts: dict[str, object] = {"jobs": {one.id: 10**6 for one in some}, "gangs": gangs, "now": NOW}
    return Scene(some, **(facts | more))  # type: ignore[arg-type]


COLD, WARM = lane(1, created_at=NOW - 1, model="cold"), lane(2, created_at=NOW - 1)


def test_where_nothing_lacks_room_nothing_is_pressed_out() -> None:
    scene = rivals([COLD], [])
    assert press(scene) == gone("tiny.1")
    assert press(replace(scene, gangs=[standing("tiny"), standing("cold", GangState.STARTING)])) is None
    assert press(replace(scene, gangs=[standing("tiny"), lacking("cold", "elsewhere.1")])) is None
    assert press(replace(scene, pressed={"tiny.1": "cold"})) is None


def test_a_gang_with_nothing_to_do_goes_once_it_stood_as_long_as_the_other_loads() -> None:
    young = [standing("tiny", ready_at=NOW - LOAD_S + 1), lacking("cold", "tiny.1")]
    assert press(rivals([COLD], [], gangs=young)) is None
    assert press(rivals([COLD], [], flights={"tiny": 1}, gangs=young)) is None
    assert press(rivals([COLD], [])) is not None


def test_equal_priorities_take_turns_where_the_work_outlasts_the_loading_or_has_waited() -> None:
    assert press(rivals([COLD], [WARM])) == gone("tiny.1")
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
    assert press(scene) == gone("tiny.1", urgent=True)
    assert press(replace(scene, gangs=[replace(fresh, drawn=0), scene.gangs[1]])) is None
    assert press(replace(scene, urgent=[NOW - 1] * BURST)) is None
    assert press(replace(scene, urgent=[NOW - BURST * TURN * LOAD_S] * BURST)) is not None


def test_a_lower_priority_waits_long_but_not_for_ever() -> None:
    higher = replace(WARM, priority=100)
    assert press(rivals([COLD], [higher])) is None
    assert press(rivals([replace(COLD, created_at=NOW - LONGEST_S)], [higher])) == gone("tiny.1")


def test_a_further_gang_presses_out_only_what_has_nothing_to_do() -> None:
    further = [standing("tiny"), standing("cold"), replace(lacking("cold", "tiny.1"), place=1)]
    assert press(rivals([replace(COLD, priority=9)], [WARM], gangs=further)) is None
    assert press(rivals([COLD], [], gangs=further)) == gone("tiny.1")


def test_a_gang_that_is_kept_goes_after_the_others_and_for_a_first_gang_alone() -> None:
    kept, other = standing("tiny", kept=True), replace(standing("other", ready_at=NOW - LOAD_S), gang="other.1")
    assert press(rivals([COLD], [], gangs=[kept, lacking("cold", "tiny.1")])) == gone("tiny.1")
    both = rivals([COLD], [], gangs=[kept, other, lacking("cold", "tiny.1", "other.1")])
    assert press(both) == gone("other.1")


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
    assert found is None or not found.gangs & kept
    assert (found is not None) == any(one.model == "tiny" and one.gang not in kept for one in others)


def test_a_model_makes_room_itself_for_the_first_gang_of_a_stage_but_not_by_the_last_of_another() -> None:
    drawing = [replace(standing("cold"), gang=f"cold.{number}", asked="cold") for number in (1, 2)]
    words = replace(lacking("cold", "cold.1", "cold.2"), asked="cold/encode")
    assert press(rivals([COLD], [], gangs=[*drawing, words])) == gone("cold.1")
    assert press(rivals([COLD], [], gangs=[*drawing, words], pressed={"cold.1": "cold"})) is None
    assert press(rivals([COLD], [], gangs=[drawing[0], words])) is None
    comes = replace(standing("cold", GangState.STARTING), asked="cold/encode", place=1)
    assert press(rivals([COLD], [], gangs=[*drawing, words, comes])) is None, "a further one of that stage"


def test_the_idle_gang_goes_before_the_busy_one_and_the_higher_priority_is_helped_first() -> None:
    busy = replace(standing("other", GangState.BUSY), gang="other.1")
    scene = rivals([COLD], [WARM], gangs=[standing("tiny"), busy, lacking("cold", "tiny.1", "other.1")])
    assert press(scene) == gone("other.1")  # which has no lane at all
    third = lane(3, priority=1, created_at=NOW - 1, model="third")
    both = replace(scene, lanes=[*scene.lanes, third], jobs={**scene.jobs, 3: 5})
    third_lacks = lacking("third", "tiny.1", "other.1")
    assert press(replace(both, gangs=[*scene.gangs, third_lacks])) == gone("other.1", model="third")


def test_a_model_whose_stages_run_apart_makes_room_for_the_one_that_lacks_it() -> None:
    encoder = replace(standing("cold"), gang="cold.2", asked="cold/encode")
    assert press(rivals([COLD], [WARM], gangs=[standing("tiny"), encoder, lacking("cold", "tiny.1")])) == gone("tiny.1")


def test_two_of_a_stage_never_go_for_another_stage_where_none_would_be_left() -> None:
    drawing = [replace(standing("cold"), gang=f"cold.{number}", asked="cold") for number in (1, 2, 3)]
    words = replace(lacking("cold", "cold.1", "cold.2", "cold.3", need=2), asked="cold/encode")
    assert press(rivals([COLD], [], gangs=[*drawing, words])) == gone("cold.1", "cold.2")
    assert press(rivals([COLD], [], gangs=[*drawing[1:], words])) is None


# Several gangs that go together


FOUR = several("tiny.1", "tiny.2", "tiny.3", "tiny.4")
NAMES = [one.gang for one in FOUR]


def test_all_go_together_or_none_does_and_they_count_as_one_urgent_change() -> None:
    high = replace(COLD, priority=1)
    young = [replace(one, ready_at=NOW - 1) for one in FOUR]
    scene = rivals([high], [WARM], gangs=[*young, lacking("cold", *NAMES, need=4)])
    assert press(scene) == gone(*NAMES, urgent=True)
    assert press(replace(scene, gangs=[replace(young[0], drawn=0), *scene.gangs[1:]])) is None
    assert press(replace(scene, gangs=[*young, lacking("cold", *NAMES, need=5)])) is None, "they cannot make the room"
    turns = rivals([COLD], [WARM], gangs=[*FOUR, lacking("cold", *NAMES, need=4)])
    assert press(turns) == gone(*NAMES)
    assert press(replace(turns, gangs=[*FOUR[1:], young[0], turns.gangs[-1]])) is None


def test_no_more_go_than_must_and_those_of_one_node_rather_than_of_several() -> None:
    nodes = {"tiny.1": "a", "tiny.2": "b", "tiny.3": "a", "tiny.4": "b"}
    aged = [replace(one, ready_at=one.ready_at - 10 + number) for number, one in enumerate(FOUR)]
    assert press(rivals([COLD], [WARM], gangs=[*aged, lacking("cold", *NAMES, nodes=nodes, need=2)])) == gone(
        "tiny.1", "tiny.3"
    )
    each = lacking("cold", *NAMES, nodes=nodes, count=2)
    assert press(rivals([COLD], [WARM], gangs=[*aged, each])) == gone("tiny.1", "tiny.2"), "a bundle on either, or both"
    assert press(rivals([COLD], [WARM], gangs=[*aged, lacking("cold", *NAMES, nodes=nodes, need=3)])) is None


def test_one_large_gang_goes_rather_than_several_small_ones_of_the_same_worth() -> None:
    large = replace(standing("tiny"), gang="tiny.9", ready_at=NOW - TURN * LOAD_S)
    older = [replace(one, ready_at=one.ready_at - 5) for one in FOUR]
    taken = {"tiny.9": {"b": (0, 4)}} | {name: {"a": (0, 1)} for name in NAMES}
    lack = Lack((0, 4), 1, {"a": (0, 0), "b": (0, 0)}, taken)
    place = replace(lacking("cold"), lack=lack)
    assert press(rivals([COLD], [WARM], gangs=[*older, large, place])) == gone("tiny.9")
    idle = [replace(one, model="idle") for one in older]
    assert press(rivals([COLD], [WARM], gangs=[*idle, large, place])) == gone(*NAMES), "who have nothing to do"
    both = [*idle, replace(large, model="idle"), place]
    assert press(rivals([COLD], [WARM], gangs=both)) == gone("tiny.9")


def test_those_behind_leave_alone_what_the_first_in_line_waits_for() -> None:
    """Else a gang that needs the room of several would never find them all ripe."""
    idle = replace(standing("idle"), gang="idle.1")
    young = replace(standing("tiny"), ready_at=NOW - 1)
    small, first = lane(3, created_at=NOW - 1, model="small"), lane(1, priority=1, created_at=NOW - 1, model="cold")
    both = [lacking("cold", "idle.1", "tiny.1", need=2), lacking("small", "idle.1", "tiny.1")]
    spent = {"urgent": [NOW - 1] * BURST}
    scene = rivals([first, small], [WARM], gangs=[young, idle, *both], **spent)
    assert press(scene) is None
    assert press(replace(scene, gangs=[young, idle, both[1]])) == gone("idle.1", model="small")
    low = replace(first, priority=-9)
    assert press(replace(scene, lanes=[low, small, WARM])) == gone("idle.1", model="small"), (
        "which it does not wait for"
    )
    overdue = replace(low, created_at=NOW - LONGEST_S)
    assert press(replace(scene, lanes=[overdue, small, WARM])) is None


def test_where_no_room_came_of_it_the_next_try_is_later_each_time() -> None:
    scene = rivals([COLD], [], gangs=[*FOUR, lacking("cold", *NAMES)])
    tries, at = begin(scene, {}), []
    for _ in range(400):
        scene = replace(
            scene, now=scene.now + 10.0, gangs=[one for one in scene.gangs if one.gang not in tries["cold"].gangs]
        )
        tries = left(tries, scene)
        now = replace(scene, rests={"cold": tries["cold"].until}, pressed={})
        if press(now) is not None:
            at.append(scene.now - NOW)
            tries = begin(now, tries)
    assert at == [200.0, 600.0, 1400.0]


def begin(scene: Scene, tries: dict[str, Try]) -> dict[str, Try]:
    found = press(scene)
    assert found is not None
    return begun(tries, found, scene)


def test_a_try_ends_with_a_gang_more_or_where_nobody_waits() -> None:
    scene = rivals([COLD], [], gangs=[*FOUR, lacking("cold", *NAMES, need=2)])
    tries = begin(scene, {})
    assert tries["cold"].gangs == {"tiny.1", "tiny.2"}
    assert tries["cold"].until == NOW + TURN * LOAD_S
    less = left(tries, replace(scene, gangs=scene.gangs[1:]))
    assert less["cold"].gangs == {"tiny.2"}
    assert left(tries, replace(scene, gangs=[*scene.gangs, standing("cold", GangState.STARTING)])) == {}
    assert left(tries, replace(scene, lanes=[])) == {}
    quick = replace(scene, gangs=[replace(one, load_s=0.1) for one in scene.gangs])
    assert begin(quick, {})["cold"].until == NOW + SETTLES_S


# What holds the room


AMOUNTS = st.dictionaries(st.sampled_from("abc"), st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=3)
LACKS = st.builds(
    Lack,
    st.tuples(st.integers(0, 2), st.integers(1, 3)),
    st.integers(1, 3),
    AMOUNTS,
    st.dictionaries(st.sampled_from([f"gang.{number}" for number in range(6)]), AMOUNTS, max_size=6),
)


@given(LACKS, st.randoms())
def test_the_least_that_make_room_do_and_none_of_them_may_stay(lack: Lack, random: object) -> None:
    gangs = list(lack.taken)
    random.shuffle(gangs)  # type: ignore[attr-defined]
    least = lack.least(gangs)
    assert lack.met(least) == lack.met(gangs)
    if lack.met(gangs):
        assert not any(lack.met([one for one in least if one != gang]) for gang in least)
        assert all(lack.useful(gang) for gang in least)
    else:
        assert least == []
    assert lack.without(least).met() == lack.met(least)
