"""Which lane is served next: priority kept, projects in turn, nobody starved."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from farm.leasing import AGEING_S, LaneView
from farm.ports import Demand, GangState, GangStatus
from farm.scheduler import Scene, demands, lease_seconds, order

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


def lane(id_: int, project: str = "a", priority: int = 0, created_at: float = 0.0, model: str = "tiny") -> LaneView:
    return LaneView(id_, project, 1, model, f"{model}/128x128/8/text", priority, created_at)


def standing(model: str, state: GangState = GangState.READY, **more: object) -> GangStatus:
    return GangStatus(model, 0, model, f"{model}.1", state, "a job", 0.0, **more)  # type: ignore[arg-type]


def of_lanes(some: list[LaneView], now: float = 0.0, warm: tuple[str, ...] = (), **more: object) -> Scene:
    gangs = tuple(standing(model) for model in warm)
    return Scene(some, dict.fromkeys((one.id for one in some), 1), gangs, now, **more)  # type: ignore[arg-type]


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


def test_what_keeps_a_model_supplied_is_counted_in_the_gangs_that_draw() -> None:
    words = replace(standing("tiny"), gang="tiny.9", asked="tiny/encode")
    gangs = [words, *(replace(standing("tiny"), gang=f"tiny.{number}", asked="tiny") for number in range(4))]
    scene = of_lanes([lane(1, priority=9, model="tiny"), lane(2, model="flux1-dev")], flights={"tiny": 8})
    assert [one.id for one in order(replace(scene, gangs=gangs))] == [1, 2]
    assert [one.id for one in order(replace(scene, gangs=gangs, flights={"tiny": 9}))] == [2, 1]


def test_demand_is_what_waits_and_what_runs() -> None:
    lanes = [lane(1, model="cold"), lane(2)]
    assert demands(lanes, {1: 3, 2: 0}, ["tiny/1000x1000/2/text"]) == {
        "cold": Demand(3, 3 * 0.016384 * 8),
        "tiny": Demand(1, 2.0),
    }


def test_a_lease_grows_with_the_work() -> None:
    small, large = "tiny/128x128/8/text", "flux1-dev/1024x1024/50/text"
    assert 30 < lease_seconds(30, small, 1) < lease_seconds(30, small, 4) < 60
    assert lease_seconds(30, large, 4) > 600
