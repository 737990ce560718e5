"""What the dispatcher tells the renderer of what waits, and when a gang is to make room."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from farm.access import Access
from farm.db import connect, migrate
from farm.job import Spec
from farm.job_queue import JobQueue, NewJob
from farm.lack import Lack
from farm.leasing import LaneView
from farm.ports import Demand, Drained, GangState, GangStatus
from farm.steering import Steering
from tests.fakes import FlatRenderer

TINY = Spec("tiny", "a red circle", 1, 1000, 1000, 4, 3.5)
NOW = 1_790_000_000.0


@dataclass
class Told(FlatRenderer):
    gangs: list[GangStatus] = field(default_factory=list)
    demand: Mapping[str, Demand] = field(default_factory=dict)
    pressed: Mapping[str, str] = field(default_factory=dict)

    def status(self) -> list[GangStatus]:
        return self.gangs

    def need(self, demand: Mapping[str, Demand], pressed: Mapping[str, str], drained: Drained) -> None:
        self.demand, self.pressed, self.drained = demand, pressed, drained


def warm(model: str) -> GangStatus:
    return GangStatus(model, 0, model, f"{model}.1", GangState.READY, "a job", 0.0, drawn=1, ready_at=NOW - 3600)


def lacking(model: str, rival: str) -> GangStatus:
    lack = Lack((0, 1), 1, {"node": (0, 0)}, {rival: {"node": (0, 1)}})
    return GangStatus(model, 0, model, "", GangState.STARTING, "", 0.0, lack=lack)


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[JobQueue]:
    engine = connect(f"sqlite:///{tmp_path / 'farm.db'}")
    migrate(engine)
    Access(engine).create_project("ours")
    yield JobQueue(engine, lambda: NOW)
    engine.dispose()


def submit(queue: JobQueue, spec: Spec, jobs: int) -> int:
    batch = queue.open_batch("ours", "a batch", "ann")
    queue.stage(batch, [NewJob(line=line, spec=spec) for line in range(1, jobs + 1)])
    queue.accept(batch, None)
    return batch


def test_a_cold_models_jobs_stay_in_the_queue_until_a_gang_has_made_room_for_it(queue: JobQueue) -> None:
    batch = submit(queue, replace(TINY, model="cold"), 3)
    renderer = Told(gangs=[warm("tiny"), lacking("cold", "tiny.1")])
    steering = Steering(queue, renderer, lambda: NOW)
    assert steering.lanes(queue.lanes(), []) == []  # counted at once: nobody takes what could only sit and wait
    assert renderer.demand == {}
    steering.steer(queue.lanes(), [])
    assert renderer.demand == {"cold": Demand(3, 12.0)}
    assert renderer.pressed == {"tiny.1": "cold"}
    steering.steer(queue.lanes(), [])
    assert renderer.pressed == {"tiny.1": "cold"}  # until it is gone
    renderer.gangs = [replace(warm("cold"), drawn=0)]
    steering.steer(queue.lanes(), [])
    assert renderer.pressed == {}
    assert [lane.batch_id for lane in steering.lanes(queue.lanes(), [])] == [batch]


def test_a_gang_need_not_go_any_more_once_nobody_waits_for_its_room(queue: JobQueue) -> None:
    batch = submit(queue, replace(TINY, model="cold"), 3)
    renderer = Told(gangs=[warm("tiny"), lacking("cold", "tiny.1")])
    steering = Steering(queue, renderer, lambda: NOW)
    steering.steer(queue.lanes(), [])
    assert renderer.pressed
    queue.cancel_batch(batch, "ann")
    steering.steer(queue.lanes(), [])
    assert (renderer.pressed, renderer.demand) == ({}, {})


def test_what_is_in_flight_is_needed_too_and_priorities_are_remembered(queue: JobQueue) -> None:
    submit(queue, TINY, 5)
    (lane,) = queue.lanes()
    leases = queue.claim(lane.id, "me", 2, 30.0)
    urgent = submit(queue, replace(TINY, model="cold"), 1)
    queue.set_priority(urgent, 5, "ann")
    renderer = Told(gangs=[replace(warm("tiny"), ready_at=NOW - 1), lacking("cold", "tiny.1")])
    steering = Steering(queue, renderer, lambda: NOW)
    steering.steer(queue.lanes(), [leases])
    assert renderer.demand == {"tiny": Demand(5, 20.0), "cold": Demand(1, 4.0)}
    assert renderer.pressed == {"tiny.1": "cold"}
    assert steering.urgent == [NOW]


def test_a_lane_that_is_counted_is_not_counted_again_before_the_next_beat(
    queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[list[int]] = []

    def backlog(lanes: Iterable[LaneView]) -> dict[int, int]:
        counted.append([lane.batch_id for lane in lanes])
        return JobQueue.backlog(queue, lanes)

    first = submit(queue, TINY, 2)
    steering = Steering(queue, Told(gangs=[warm("tiny")]), lambda: NOW)
    steering.steer(queue.lanes(), [])
    monkeypatch.setattr(queue, "backlog", lambda lanes: backlog(list(lanes)))
    second = submit(queue, TINY, 1)
    for _ in range(2):
        assert [lane.batch_id for lane in steering.lanes(queue.lanes(), [])] == [first, second]
    assert counted == [[second]]
