"""Which lane is served next: priority kept, projects in turn, nobody starved."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from farm.leasing import AGEING_S, LaneView
from farm.scheduler import lease_seconds, order

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


@given(several, st.randoms())
def test_the_order_holds_every_lane_once_and_not_the_order_of_asking(some: list[LaneView], random: object) -> None:
    shuffled = list(some)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert order(some, {}, {"tiny"}, 10_000) == order(shuffled, {}, {"tiny"}, 10_000)
    assert Counter(order(some, {}, set(), 10_000)) == Counter(some)


@given(several, st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(0, 9)))
def test_of_equal_age_the_higher_priority_always_goes_first(some: list[LaneView], running: dict[str, int]) -> None:
    same_age = [lane(one.id, one.project_id, one.priority, 0.0, one.model) for one in some]
    priorities = [one.priority for one in order(same_age, running, {"tiny"}, 0.0)]
    assert priorities == sorted(priorities, reverse=True)


def test_of_equal_priority_the_project_with_least_running_goes_first() -> None:
    assert order([lane(1, "a"), lane(2, "b", created_at=1.0)], {"a": 3}, set(), 2.0)[0].project_id == "b"


def test_a_warm_model_is_preferred_but_not_over_another_projects_turn() -> None:
    cold, warm = lane(1, model="flux1-dev"), lane(2, model="tiny", created_at=1.0)
    assert order([cold, warm], {}, {"tiny"}, 2.0)[0] is warm
    other = lane(3, "b", model="flux1-dev", created_at=1.0)
    assert order([other, warm], {"a": 1}, {"tiny"}, 2.0)[0] is other


@given(st.integers(0, 20))
def test_nothing_starves_behind_a_stream_of_fresh_urgent_work(head_start: int) -> None:
    old = lane(1, priority=0, created_at=0.0)
    now = (head_start + 1) * AGEING_S
    fresh = lane(2, priority=head_start, created_at=now)
    assert order([old, fresh], {}, set(), now)[0] is old


def test_a_lease_grows_with_the_work() -> None:
    small, large = "tiny/128x128/8/text", "flux1-dev/1024x1024/50/text"
    assert 30 < lease_seconds(30, small, 1) < lease_seconds(30, small, 4) < 60
    assert lease_seconds(30, large, 4) > 600
