"""What running jobs tell on their way to whoever watches; and that no trouble with it reaches them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from farm.dispatcher import Dispatcher
from farm.errors import Fault
from farm.insights import Insights
from farm.job import Cause
from farm.job_queue import NewJob
from farm.pipeline import Group
from farm.ports import Frame, Lease, Outcome, Rendered, RenderRequest, Stage, Step, Verdict
from farm.tables import JOB_FAULT, PROGRESS, VERDICT
from farm.teller import Teller
from tests.fakes import away
from tests.test_pipeline import FakePorts, dispatch_until, fake_ports, lease_all, rows, spec, states, submit

SMALL = Frame(4, 4, bytes(48))


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[FakePorts]:
    yield from fake_ports(tmp_path)


def leased(ports: FakePorts, jobs: int = 1) -> list[Lease]:
    submit(ports, *(NewJob(line=seed, spec=spec(seed=seed)) for seed in range(1, jobs + 1)))
    return lease_all(ports)


def step_of(lease: Lease, step: int, preview: Frame | None = None) -> Step:
    return Step(lease.job_id, lease.attempt, step, 8, preview, "gang-1", "w" * 64)


def told(ports: FakePorts) -> list[tuple[int, bool]]:
    found = Insights(ports.queue.engine).running("p", 10)
    return [(row["step"], bool(row["preview"])) for row in found]


def show(teller: Teller, leases: Sequence[Lease], step: int = 3, frame: Frame = SMALL) -> None:
    """Heard, told, and whatever comes of the preview."""
    hear = teller.listen(leases)
    hear([step_of(lease, step) for lease in leases])
    teller.tell()
    hear([step_of(lease, step, frame) for lease in leases])
    with teller.showing:  # the thread that judges has ended
        pass


def test_the_newest_step_is_told_and_strangers_are_not(ports: FakePorts) -> None:
    (lease,) = leased(ports)
    teller = Teller(ports, share=1.0)
    hear = teller.listen([lease])
    hear([step_of(lease, 1)])
    hear([step_of(lease, 2), step_of(replace(lease, attempt=9), 7), step_of(replace(lease, job_id=99), 7)])
    teller.tell()
    assert told(ports) == [(2, False)]
    teller.tell()
    assert len(rows(ports, PROGRESS)) == 1


def test_an_allowed_preview_is_judged_signed_and_kept(ports: FakePorts) -> None:
    (lease,) = leased(ports)
    show(Teller(ports, share=1.0), [lease])
    assert told(ports) == [(3, True)]
    (row,) = rows(ports, PROGRESS)
    assert row["preview"] == f"{lease.job_id} {SMALL.sha256}".encode(), "as the signer gave it"
    (said,) = rows(ports, VERDICT)
    assert (said["stage"], said["subject"], said["gang"], said["weights"]) == (
        "preview",
        SMALL.sha256,
        "gang-1",
        "w" * 64,
    )
    assert said["embedding"] is None


@pytest.mark.parametrize("outcome", [Outcome.BLOCK, Outcome.REVIEW])
def test_a_preview_that_is_not_allowed_is_nowhere_and_takes_the_one_before_with_it(
    ports: FakePorts, outcome: Outcome
) -> None:
    (lease,) = leased(ports)
    teller = Teller(ports, share=1.0)
    show(teller, [lease])
    ports.gate.frame_outcome = lambda frame: outcome
    show(teller, [lease], 4, Frame(4, 4, bytes(range(48))))
    assert told(ports) == [(4, False)]
    (row,) = rows(ports, PROGRESS)
    assert (row["preview"], row["mime"]) == (None, None)
    assert ports.signer.signed == [lease.job_id], "the first alone"
    assert [row["outcome"] for row in rows(ports, VERDICT)] == ["allow", outcome]
    assert states(ports) == {"leased": 1}


def failing(ports: FakePorts, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def raising(*_: Any) -> Any:
        raise ZeroDivisionError("nobody foresaw this")

    if where == "gate":
        ports.gate.fault = away(Cause.GATE_ERROR)
    elif where == "signer":
        ports.signer.fault = away(Cause.SIGNER_FAILED)
    elif where == "verifier":
        ports.verifier.verdict = "Valid"
    else:
        whose: tuple[object, str] = (ports.queue, "record") if where == "queue" else (ports.gate, "judge_frames")
        monkeypatch.setattr(*whose, raising)


@pytest.mark.parametrize("where", ["gate", "gate raises", "signer", "verifier", "queue"])
def test_trouble_with_a_preview_leaves_the_step_alone_and_the_job_untouched(
    ports: FakePorts, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    leases = leased(ports, 2)
    failing(ports, monkeypatch, where)
    show(Teller(ports, share=1.0), leases)
    assert told(ports) == [(3, False)] * 2
    assert states(ports) == {"leased": 2}
    assert rows(ports, JOB_FAULT) == []


def test_after_trouble_no_more_previews_of_that_group_are_looked_at(
    ports: FakePorts, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def dying(frames: Sequence[Frame], stage: Stage) -> list[Verdict | Fault]:
        asked.append(len(frames))
        raise away(Cause.GATE_ERROR)

    monkeypatch.setattr(ports.gate, "judge_frames", dying)
    first, second = leased(ports, 2)
    teller = Teller(ports, share=1.0)
    hear = teller.listen([first])
    for step in (3, 4, 5):
        hear([step_of(first, step, SMALL)])
        with teller.showing:
            pass
    assert asked == [1]
    show(teller, [second])
    assert asked == [1, 1]


def test_previews_that_come_while_one_is_judged_are_dropped_and_nobody_waits(
    ports: FakePorts, monkeypatch: pytest.MonkeyPatch
) -> None:
    judging, go_on, judge = threading.Event(), threading.Event(), ports.gate.judge_frames
    asked: list[int] = []

    def slow(frames: Sequence[Frame], stage: Stage) -> list[Verdict | Fault]:
        asked.append(len(frames))
        judging.set()
        assert go_on.wait(10)
        return judge(frames, stage)

    monkeypatch.setattr(ports.gate, "judge_frames", slow)
    (lease,) = leased(ports)
    teller = Teller(ports, share=1.0)
    hear = teller.listen([lease])
    hear([step_of(lease, 3, SMALL)])
    assert judging.wait(10)
    began = time.monotonic()
    for step in range(4, 8):
        hear([step_of(lease, step, SMALL)])
    teller.tell()
    assert time.monotonic() - began < 5
    assert told(ports) == [(7, False)]
    go_on.set()
    with teller.showing:
        pass
    assert asked == [1]
    assert told(ports) == [(7, True)], "the one that was at work is shown, beside a newer step"


def test_previews_take_a_small_share_of_the_gate_s_time(ports: FakePorts, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    judge, judged = ports.gate.judge_frames, []

    def slow(frames: Sequence[Frame], stage: Stage) -> list[Verdict | Fault]:
        judged.append(now[0])
        now[0] += 0.5
        return judge(frames, stage)

    monkeypatch.setattr("farm.teller.time.monotonic", lambda: now[0])
    monkeypatch.setattr(ports.gate, "judge_frames", slow)
    (lease,) = leased(ports)
    teller = Teller(ports)
    hear = teller.listen([lease])
    for step in range(1, 20):
        hear([step_of(lease, step, SMALL)])
        with teller.showing:
            pass
        now[0] += 1.0
    assert judged == [1000.0, 1005.5, 1011.0, 1016.5], "half a second of every five"


def test_a_preview_whose_lease_was_lost_while_it_was_signed_is_dropped(
    ports: FakePorts, monkeypatch: pytest.MonkeyPatch
) -> None:
    (lease,) = leased(ports)
    sign = ports.signer.sign

    def cancelled_meanwhile(lease: Lease, frame: Frame) -> Any:
        ports.queue.cancel_job(lease.job_id, "ann")
        return sign(lease, frame)

    monkeypatch.setattr(ports.signer, "sign_preview", cancelled_meanwhile)
    show(Teller(ports, share=1.0), [lease])
    assert told(ports) == []
    assert rows(ports, PROGRESS)[0]["preview"] is None
    ports.queue.forget_steps()
    assert rows(ports, PROGRESS) == []


class Stepping:
    """Tells its steps, with a preview each, until it is stopped or done."""

    def __init__(self, total: int = 1000) -> None:
        self.total, self.step, self.stopped = total, 0, threading.Event()

    def render(
        self,
        requests: Sequence[RenderRequest],
        cancelled: Callable[[], bool],
        watch: Callable[[Sequence[Step]], None],
    ) -> list[Rendered | Fault]:
        for step in range(1, self.total + 1):
            self.step = step
            if cancelled():
                self.stopped.set()
                return [away(Cause.LEASE_LOST) for _ in requests]
            watch([Step(one.job_id, one.attempt, step, self.total, SMALL) for one in requests])
            time.sleep(0.02)
        return [Rendered(Frame(32, 32, bytes(3 * 32 * 32)), "gang-1", "w" * 64) for _ in requests]


def test_a_group_is_watched_while_it_is_drawn_and_nothing_is_left_of_it_when_it_ends(
    ports: FakePorts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm.dispatcher.TIDY_S", 0.05)
    monkeypatch.setattr(ports.renderer, "render", Stepping(50).render)
    submit(ports, *(NewJob(line=seed, spec=spec(seed=seed)) for seed in (1, 2)))
    seen: set[tuple[int, bool]] = set()

    def over() -> bool:
        seen.update(told(ports))
        return states(ports) == {"published": 2} and rows(ports, PROGRESS) == []

    dispatch_until(Dispatcher(ports, group=2, workers=1), over)
    assert len({step for step, _ in seen}) > 2
    assert any(preview for _, preview in seen)
    assert rows(ports, JOB_FAULT) == []


def test_a_cancelled_job_stops_being_drawn_within_a_beat_and_a_step(
    ports: FakePorts, monkeypatch: pytest.MonkeyPatch
) -> None:
    renderer = Stepping()
    monkeypatch.setattr(ports.renderer, "render", renderer.render)
    submit(ports, NewJob(line=1, spec=spec()))
    after: list[float] = []

    def stopped() -> bool:
        if renderer.step > 3 and not after:
            ports.queue.cancel_job(1, "ann")
            after.append(time.monotonic())
        return renderer.stopped.is_set()

    dispatch_until(Dispatcher(ports, group=1, workers=1), stopped, seconds=10)
    assert time.monotonic() - after[0] < 5, "a beat is a second, on a machine that has time"
    assert states(ports) == {"cancelled": 1}
    assert rows(ports, JOB_FAULT) == []


def test_a_renderer_that_tells_nothing_is_drawn_with_all_the_same(ports: FakePorts) -> None:
    group = Group(ports)
    group.run(leased(ports))
    assert states(ports) == {"published": 1}
