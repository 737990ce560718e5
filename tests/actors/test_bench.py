"""Gangs that end one job after the other are rested."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.bench import LONGEST_S, REST_S, STRIKES, Form, rest_s


def test_three_different_jobs_in_a_row_rest_a_place_and_the_next_three_for_longer() -> None:
    form = Form()
    for job in (1, 2):
        form = form.after(job, 100.0)
    assert not form.rests_at(100.0)
    form = form.after(3, 100.0)
    assert form.rests_at(100.0 + REST_S - 1)
    assert not form.rests_at(100.0 + REST_S)
    for job in (4, 5, 6):
        form = form.after(job, 200.0)
    assert form.until == 200.0 + 2 * REST_S


@given(st.lists(st.integers(1, 2)))
def test_two_jobs_alone_never_rest_a_place(jobs: list[int]) -> None:
    form = Form()
    for job in jobs:
        form = form.after(job, 0.0)
    assert not form.rests_at(0.0)


@given(st.lists(st.integers(1, 9), max_size=60))
def test_each_rest_is_paid_for_by_different_jobs_and_never_too_long(jobs: list[int]) -> None:
    form, paid = Form(), set[int]()
    for job in jobs:
        before, form = form, form.after(job, 0.0)
        paid.add(job)
        if form.rests > before.rests:
            assert len(paid) == STRIKES
            assert rest_s(before.rests) == form.until <= LONGEST_S
            paid = set()
