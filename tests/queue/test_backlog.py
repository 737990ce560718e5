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
    lanes = {lane.model: lane.id for lane in desk.queue.lanes()}
    assert desk.queue.backlog(lanes.values()) == {lanes["tiny"]: 3, lanes["flux1-dev"]: 1}
    lease = desk.queue.claim(lanes["tiny"], "worker", 1, 30.0)[0]
    assert desk.queue.backlog([lanes["tiny"]]) == {lanes["tiny"]: 2}
    desk.queue.fault(lease, Fault(Cause.STORE_DOWN, "away"), retry_s=5.0)
    assert desk.queue.backlog([lanes["tiny"]]) == {lanes["tiny"]: 2}  # not before its pause is over
    desk.clock.now += 5.0
    assert desk.queue.backlog([lanes["tiny"]]) == {lanes["tiny"]: 3}
    assert desk.queue.backlog([]) == {}


def test_a_lane_is_counted_as_far_as_it_matters(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "COUNTED", 2)
    desk.submit(count=5)
    assert list(desk.queue.backlog(lane.id for lane in desk.queue.lanes()).values()) == [2]


def test_no_gang_is_asked_for_by_a_model_that_nobody_accepted(desk: Desk) -> None:
    desk.submit(count=2)
    strict = JobQueue(desk.engine, desk.clock, {"tiny": "a licence"})
    assert list(strict.backlog(lane.id for lane in strict.lanes()).values()) == [0]
