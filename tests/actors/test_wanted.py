"""How many gangs a backlog asks for, and in which places."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.wanted import PAYS, Seat, chosen, wanted
from farm.ports import Demand

demands = st.builds(Demand, st.integers(0, 10_000), st.floats(0, 1e6))
seconds = st.floats(1, 1000)
seats = st.lists(
    st.builds(Seat, st.sampled_from("abc"), st.booleans(), st.booleans(), st.booleans(), st.booleans()), max_size=8
).map(lambda some: sorted(some, key=lambda seat: seat.pool))


def test_one_gang_for_any_job_and_another_for_every_two_loadings_of_work() -> None:
    assert wanted(Demand(), 10.0, 1.0) == 0
    assert wanted(Demand(1, 0.01), 10.0, 1.0) == 1
    assert wanted(Demand(1000, 3 * PAYS * 10.0), 10.0, 1.0) == 3
    assert wanted(Demand(2, 1e9), 10.0, 1.0) == 2  # there are no more jobs


@given(demands, seconds, seconds)
def test_more_work_asks_for_no_fewer_and_slower_loading_for_no_more(demand: Demand, load: float, pace: float) -> None:
    more = Demand(demand.jobs + 1, demand.work * 2)
    assert wanted(more, load, pace) >= wanted(demand, load, pace)
    assert wanted(demand, load * 2, pace) <= wanted(demand, load, pace) <= demand.jobs


def test_what_is_kept_comes_first_then_the_pools_in_their_order() -> None:
    some = [Seat("a", True), Seat("a", False), Seat("b", False)]
    assert chosen(some, 0) == {0}
    assert chosen(some, 2) == {0, 1}
    assert chosen(some, 9) == {0, 1, 2}


def test_where_one_pool_finds_no_room_the_next_helps_out_and_the_first_waits_on() -> None:
    some = [Seat("a", False, lacks_room=True), Seat("a", False), Seat("b", False), Seat("b", False)]
    assert chosen(some, 1) == {0, 2}


def test_of_a_first_alone_nothing_is_asked_for_beyond_it() -> None:
    some = [Seat("a", False), Seat("b", True), Seat("b", True)]
    assert chosen(some, 9, first_alone=True) == {1}
    assert chosen(some, 0, first_alone=True) == {1}
    assert chosen(some[:1], 0, first_alone=True) == set()
    assert chosen([some[0], Seat("b", True, stands=True)], 9, first_alone=True) == {1}
    assert chosen([some[0], Seat("b", True, lacks_room=True)], 9, first_alone=True) == {0, 1}, "the next helps out"


@given(seats, st.integers(0, 9))
def test_what_stands_stays_and_what_rests_is_not_asked_for(some: list[Seat], count: int) -> None:
    found = chosen(some, count)
    assert {number for number, seat in enumerate(some) if seat.stands} <= found
    assert all(some[number].stands or not some[number].rests for number in found)
    fresh = [number for number in found if not some[number].stands and not some[number].kept]
    for pool in {some[number].pool for number in fresh}:
        assert sum(some[number].pool == pool for number in fresh) <= count
