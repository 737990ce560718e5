"""How much waits in each lane, as gangs are built by it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from farm import backlog
from farm.errors import Fault
from farm.job import Cause
from farm.job_queue import JobQueue, NewJob
from tests.queue.conftest import SPEC, Desk


def test_each_lane_counts_what_could_be_had_now(desk: Desk) -> None:
    desk.submit(count=3)
    desk.submit(NewJob(line=1, spec=replace(SPEC, model="flux1-dev")))
    tiny, dev = sorted(desk.queue.lanes(), key=lambda lane: lane.id)
    assert desk.queue.backlog([tiny, dev]) == {tiny.id: 3, dev.id: 1}
    lease = desk.queue.claim(tiny.id, "worker", 1, 30.0)[0]
    assert desk.queue.backlog([tiny]) == {tiny.id: 2}
    desk.queue.fault(lease, Fault(Cause.STORE_DOWN, "away"), retry_s=5.0)
    assert desk.queue.backlog([tiny]) == {tiny.id: 2}  # not before its pause is over
    desk.clock.now += 5.0
    assert desk.queue.backlog([tiny]) == {tiny.id: 3}
    assert desk.queue.backlog([]) == {}


@pytest.mark.parametrize(
    ("waiting", "told"),
    [
        ([5], [5]),
        ([20], [12]),
        ([20, 20, 20], [4, 4, 4]),
        ([1, 20, 2], [1, 9, 2]),  # what the small ones leave
        ([5, 20, 20], [4, 4, 4]),
        ([1, 5, 20], [1, 5, 5]),
    ],
)
def test_a_model_is_counted_as_far_as_it_matters_however_many_lanes_it_has(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, waiting: list[int], told: list[int]
) -> None:
    monkeypatch.setattr(backlog, "COUNTED", 12)
    for count in waiting:
        desk.submit(count=count)
    desk.submit(NewJob(line=1, spec=replace(SPEC, model="flux1-dev")))
    found = desk.queue.backlog(desk.queue.lanes())
    assert [jobs for _, jobs in sorted(found.items())] == [*told, 1]


def test_no_gang_is_asked_for_by_a_model_that_nobody_accepted(desk: Desk) -> None:
    desk.submit(count=2)
    strict = JobQueue(desk.engine, desk.clock, {"tiny": "a licence"})
    assert list(strict.backlog(strict.lanes()).values()) == [0]
