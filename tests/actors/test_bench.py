"""Gangs that fail one job after the other are rested; and what the jobs that met them are charged with."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from actors.bench import LONGEST_S, REST_S, STRIKES, Form, rest_s
from farm.job import MAX_OWN_FAULTS, Cause, has_failed


def test_three_different_jobs_in_a_row_rest_a_place_and_the_next_three_for_longer() -> None:
    form = Form()
    for job in (1, 2):
        form = form.after([job], 100.0)
    assert not form.rests_at(100.0)
    form = form.after([3], 100.0)
    assert form.rests_at(100.0 + REST_S - 1)
    assert not form.rests_at(100.0 + REST_S)
    for job in (4, 5, 6):
        form = form.after([job], 200.0)
    assert form.until == 200.0 + 2 * REST_S


@given(st.lists(st.integers(1, 2)))
def test_two_jobs_alone_never_rest_a_place(jobs: list[int]) -> None:
    form = Form()
    for job in jobs:
        form = form.after([job], 0.0)
    assert not form.rests_at(0.0)


@given(st.lists(st.integers(1, 9), max_size=60))
def test_each_rest_is_paid_for_by_different_jobs_and_never_too_long(jobs: list[int]) -> None:
    form, paid = Form(), set[int]()
    for job in jobs:
        before, form = form, form.after([job], 0.0)
        paid.add(job)
        if form.rests > before.rests:
            assert len(paid) == STRIKES
            assert rest_s(before.rests) == form.until <= LONGEST_S
            paid = set()


Met = dict[int, list[tuple[Cause, str | None]]]  # by job


def queue_at_one_place(jobs: int, group: int, fails: Callable[[int, int], bool]) -> tuple[Met, set[str]]:
    """What each job has met once all are drawn or failed; who met trouble comes after the others. `fails` tells of a
    gang, by number, and a job. A gang that is rested is another one when it comes again."""
    form, gang, guilty, now = Form(), 0, set[str](), 0.0
    left, met = list(range(jobs)), Met()
    while left:
        some, left, now = left[:group], left[group:], max(now, form.until)
        bad = [job for job in some if fails(gang, job)]
        form = Form() if len(bad) < len(some) else form.after(bad, now)
        if form.rests_at(now):
            guilty.add(str(gang))
        for job in bad:
            cause = Cause.GANG_DIED if form.rests_at(now) else Cause.RENDER_ERROR
            met.setdefault(job, []).append((cause, str(gang)))
        gang += form.rests_at(now)
        left += [job for job in bad if not has_failed(met[job], guilty)]
    return met, guilty


@given(st.integers(STRIKES, 20), st.integers(1, 5), st.integers(1, 2))
def test_a_broken_gang_fails_no_queue(jobs: int, group: int, broken: int) -> None:
    """So many gangs in a row that fail whatever they are asked, in words that nobody knows."""
    met, guilty = queue_at_one_place(jobs, group, lambda gang, job: gang < broken)
    assert guilty == {str(gang) for gang in range(broken)}
    assert not any(has_failed(faults, guilty) for faults in met.values())


@given(st.integers(1, 20), st.integers(1, 5), st.integers(0, 19))
def test_a_job_that_fails_by_itself_has_failed_after_three_attempts_on_the_only_gang(
    jobs: int, group: int, poison: int
) -> None:
    met, guilty = queue_at_one_place(jobs, group, lambda gang, job: job == poison)
    assert not guilty
    assert met == ({poison: [(Cause.RENDER_ERROR, "0")] * MAX_OWN_FAULTS} if poison < jobs else {})
