"""A job that is cancelled while it is drawn with others: it is not drawn any further, and the others lose nothing."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from farm.dispatcher import Dispatcher
from farm.errors import Fault
from farm.job import Cause
from farm.job_queue import NewJob
from farm.pipeline import Group
from farm.ports import Frame, Rendered, RenderRequest, Step
from farm.tables import JOB_FAULT
from tests.fakes import away
from tests.test_pipeline import FakePorts, dispatch_until, fake_ports, lease_all, rows, spec, states, submit

STEPS = 60


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[FakePorts]:
    yield from fake_ports(tmp_path)


class Going:
    """Draws its jobs together, step by step, and goes on with each from where it was stopped."""

    def __init__(self, step_s: float = 0.0) -> None:
        self.step_s = step_s
        self.steps: Counter[int] = Counter()
        self.groups: list[list[int]] = []
        self.at: Callable[[Going], None] = lambda _: None

    def render(
        self,
        requests: Sequence[RenderRequest],
        cancelled: Callable[[], bool],
        watch: Callable[[Sequence[Step]], None],
    ) -> list[Rendered | Fault]:
        self.groups.append([one.job_id for one in requests])
        while any(self.steps[one.job_id] < STEPS for one in requests):
            self.at(self)
            if cancelled():
                return [away(Cause.LEASE_LOST) for _ in requests]
            self.steps.update(one.job_id for one in requests)
            time.sleep(self.step_s)
        return [Rendered(Frame(32, 32, bytes([one.job_id]) * 3 * 32 * 32), "gang-1", "w" * 64) for one in requests]


def three(ports: FakePorts, monkeypatch: pytest.MonkeyPatch, renderer: Going) -> None:
    monkeypatch.setattr(ports.renderer, "render", renderer.render)
    submit(ports, *(NewJob(line=seed, spec=spec(seed=seed)) for seed in (1, 2, 3)))


def test_the_others_of_its_group_go_on_from_where_it_was_stopped(
    ports: FakePorts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm.dispatcher.TIDY_S", 0.05)
    renderer, done = Going(step_s=0.02), threading.Event()

    def at(one: Going) -> None:
        if one.steps[2] == 5 and not done.is_set():
            done.set()
            ports.queue.cancel_job(2, "ann")

    renderer.at = at
    three(ports, monkeypatch, renderer)
    dispatch_until(Dispatcher(ports, group=3, workers=1), lambda: states(ports) == {"published": 2, "cancelled": 1})
    assert renderer.groups == [[1, 2, 3], [1, 3]]
    assert renderer.steps[1] == renderer.steps[3] == STEPS
    assert 5 <= renderer.steps[2] < STEPS
    assert rows(ports, JOB_FAULT) == []


@pytest.mark.parametrize("raises", [False, True])
def test_however_many_leave_one_after_the_other_it_ends(
    ports: FakePorts, monkeypatch: pytest.MonkeyPatch, raises: bool
) -> None:
    renderer, gone = Going(), set[int]()
    render = renderer.render

    def rendering(
        requests: Sequence[RenderRequest],
        cancelled: Callable[[], bool],
        watch: Callable[[Sequence[Step]], None],
    ) -> list[Rendered | Fault]:
        answers = render(requests, cancelled, watch)
        if raises and any(isinstance(answer, Fault) for answer in answers):
            raise away(Cause.LEASE_LOST)  # as where it was given up before it began
        return answers

    def at(one: Going) -> None:
        gone.update(job for job, step in {1: 5, 2: 10, 3: 15}.items() if one.steps[job] == step)

    renderer.at = at
    three(ports, monkeypatch, renderer)
    monkeypatch.setattr(ports.renderer, "render", rendering)
    leases = lease_all(ports)
    group = Group(ports, gone)
    for job in (1, 2, 3):
        ports.queue.cancel_job(job, "ann")
    assert group.draw([RenderRequest(lease.job_id, lease.attempt, lease.spec) for lease in leases])[0] is not None
    assert renderer.groups == [[1, 2, 3], [2, 3], [3]]
    assert dict(renderer.steps) == {1: 5, 2: 10, 3: 15}


def test_a_group_that_was_stopped_by_nobody_of_it_is_lost_as_it_says(
    ports: FakePorts, monkeypatch: pytest.MonkeyPatch
) -> None:
    renderer = Going()
    three(ports, monkeypatch, renderer)
    monkeypatch.setattr(ports.renderer, "render", lambda requests, *_: [away(Cause.LEASE_LOST) for _ in requests])
    group = Group(ports, {99})
    group.run(lease_all(ports))
    assert states(ports) == {"queued": 3}
    assert {fault.cause for fault in group.faults} == {Cause.LEASE_LOST}
