"""The life of a job and who pays for a failure."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.errors import BadInput, Fault, nearest
from farm.job import (
    CANCELS_CHILD,
    CAUSES,
    RELEASES_CHILD,
    SETTLED,
    TRANSITIONS,
    UNSETTLED,
    Cause,
    Payer,
    Spec,
    State,
    has_failed,
    may_move,
    megapixel_steps,
)


def test_every_state_has_its_moves_and_every_cause_its_payer() -> None:
    assert set(TRANSITIONS) == set(State)
    assert set(CAUSES) == set(Cause)
    assert set(State) == SETTLED | UNSETTLED


def test_published_is_reached_from_a_lease_or_an_approval_alone() -> None:
    assert {old for old in State if may_move(old, State.PUBLISHED)} == {State.LEASED, State.APPROVED}


def test_every_unsettled_state_can_still_end() -> None:
    for state in UNSETTLED:
        seen, todo = set(), [state]
        while todo:
            here = todo.pop()
            seen.add(here)
            todo += [there for there in TRANSITIONS[here] if there not in seen]
        assert seen & SETTLED, state


def test_a_child_is_released_cancelled_or_waits_never_two_of_them() -> None:
    assert not RELEASES_CHILD & CANCELS_CHILD.keys()
    assert {State.HELD, State.APPROVED}.isdisjoint(RELEASES_CHILD | CANCELS_CHILD.keys())


@given(st.lists(st.sampled_from([c for c in Cause if CAUSES[c] is Payer.ENVIRONMENT]), max_size=50))
def test_an_outage_never_burns_an_attempt(causes: list[Cause]) -> None:
    assert not has_failed([(cause, f"gang-{index}") for index, cause in enumerate(causes)])


def test_three_of_its_own_or_three_different_gangs() -> None:
    assert not has_failed([(Cause.RENDER_ERROR, None)] * 2)
    assert has_failed([(Cause.RENDER_ERROR, None)] * 3)
    assert not has_failed([(Cause.GANG_DIED, "a")] * 8)
    assert has_failed([(Cause.GANG_DIED, name) for name in "abc"])


def test_what_was_met_in_a_guilty_gang_is_the_gang_s() -> None:
    own = [(Cause.RENDER_ERROR, gang) for gang in "aaab"]
    assert has_failed(own)
    assert not has_failed(own, {"a"})
    assert has_failed([*own, (Cause.RENDER_ERROR, "c")], {"a", "b", "c"}), "wherever it goes"
    assert has_failed([(Cause.RENDER_ERROR, None)] * 3, {"a"})


def test_what_is_wrong_with_its_input_stays_wrong() -> None:
    assert has_failed([(Cause.BAD_INPUT, None)])


@pytest.mark.parametrize("gang", ["a", None])
def test_a_gang_without_a_name_or_met_again_and_again_is_no_endless_loop(gang: str | None) -> None:
    assert has_failed([(Cause.GANG_DIED, gang)] * 9)


def test_the_shape_key_tells_how_much_work_it_is() -> None:
    spec = Spec("tiny", "a red circle", 1, 128, 96, 8, 3.5)
    assert spec.shape_key == "tiny/128x96/8/text"
    assert megapixel_steps(spec.shape_key) == 128 * 96 * 8 / 1e6


def test_a_fault_survives_the_way_through_ray() -> None:
    # Ray carries exceptions between our own processes by pickle; nothing of a stranger's is ever read that way.
    fault = pickle.loads(pickle.dumps(Fault(Cause.GANG_DIED, "rank 0 died", gang="tiny-1")))
    assert (fault.cause, fault.detail, fault.gang) == (Cause.GANG_DIED, "rank 0 died", "tiny-1")


def test_an_error_says_where_what_and_how_to_mend_it() -> None:
    error = BadInput("unknown model 'tinny'", field="model", fix=nearest("tinny", ["tiny", "flux1-dev"]))
    assert str(error) == "model: unknown model 'tinny' (did you mean 'tiny'?)"
    assert error.problem()["status"] == 422
    assert error.problem()["field"] == "model"
