"""The gate in actors of its own: it fails closed, and comes back."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from actors import cluster
from actors.gate import CALL_S, RemoteGate
from actors.host import METHODS, Host, Seat
from farm.config import Settings
from farm.errors import Fault
from farm.job import Cause
from farm.ports import Frame, Outcome, Rules, Stage, Verdict
from tests.actors.conftest import until

JUDGE = "tests.actors.fakes:load_judge"


@pytest.fixture
def gate(settings: Settings) -> RemoteGate:
    return RemoteGate(settings, JUDGE, ["gun"])


def pid(gate: RemoteGate) -> int:
    return verdict(gate, "a cat")[1]


def verdict(gate: RemoteGate, prompt: str) -> tuple[Outcome, int]:
    (answer,) = gate.judge_prompts([prompt])
    assert isinstance(answer, Verdict)
    return answer.outcome, int(answer.subject)


def cause(answers: Sequence[Verdict | Fault]) -> Cause:
    (cause,) = {answer.cause for answer in answers if isinstance(answer, Fault)}
    return cause


def test_verdicts_and_faults_come_back_in_order(gate: RemoteGate) -> None:
    allowed, fault, blocked = gate.judge_prompts(["a cat", "fault", "a gun"])
    assert isinstance(allowed, Verdict)
    assert isinstance(blocked, Verdict)
    assert isinstance(fault, Fault)
    assert (allowed.outcome, fault.cause, blocked.outcome) == (Outcome.ALLOW, Cause.GATE_ERROR, Outcome.BLOCK)
    assert int(allowed.subject) != os.getpid()
    assert allowed.encoder == "cpu, sees '', threads 1"


def test_what_ends_the_gate_pays_for_it_and_the_gate_works_again(gate: RemoteGate) -> None:
    first = pid(gate)
    assert cause(gate.judge_prompts(["die"])) is Cause.GATE_ERROR
    assert pid(gate) != first


def test_killed_between_two_questions_it_is_down_and_then_works_again(gate: RemoteGate) -> None:
    first = pid(gate)
    os.kill(first, signal.SIGKILL)
    assert cause(gate.judge_prompts(["a cat"])) is Cause.GATE_DOWN
    assert pid(gate) != first


def test_what_hangs_the_gate_pays_for_it(settings: Settings) -> None:
    gate = RemoteGate(settings, JUDGE, ["gun"], call_s=1.0)
    assert cause(gate.judge_prompts(["hang"])) is Cause.GATE_ERROR
    pid(gate)


def test_what_hangs_the_gate_as_a_preview_does_not_keep_it_from_finished_frames_for_long(settings: Settings) -> None:
    gate = RemoteGate(settings, JUDGE, ["hangs at previews"], preview_s=1.0)
    frame = Frame(1, 1, bytes(3))
    (before,) = gate.judge_frames([frame], Stage.FRAME)
    began = time.monotonic()
    assert cause(gate.judge_frames([frame], Stage.PREVIEW)) is Cause.GATE_ERROR
    assert gate.judge_frames([frame], Stage.FRAME) == [before]
    assert time.monotonic() - began < CALL_S


@pytest.mark.parametrize("word", ["dies when asked", "dies when made"])
def test_a_gate_that_dies_before_it_is_asked_is_nobody_s_fault(settings: Settings, word: str) -> None:
    assert cause(RemoteGate(settings, JUDGE, [word]).judge_prompts(["a cat"])) is Cause.GATE_DOWN


def test_what_it_raises_is_no_verdict_and_no_restart(gate: RemoteGate) -> None:
    first = pid(gate)
    assert cause(gate.judge_prompts(["odd"])) is Cause.GATE_ERROR
    assert pid(gate) == first


def test_a_gate_that_fails_at_any_picture_is_replaced_and_nobody_pays(gate: RemoteGate) -> None:
    first = pid(gate)
    assert cause(gate.judge_prompts(["fault"])) is Cause.GATE_ERROR
    assert pid(gate) == first, "it was this prompt's doing"
    (answer,) = gate.judge_prompts(["break"])
    assert isinstance(answer, Fault)
    assert answer.cause is Cause.GATE_DOWN
    assert "fails at a harmless picture, too: CUDA error" in answer.detail
    assert pid(gate) != first


def test_rules_reach_the_actor_with_the_next_call_and_every_later_actor(gate: RemoteGate) -> None:
    first = pid(gate)
    gate.use(Rules("cat"))
    assert verdict(gate, "a cat") == (Outcome.BLOCK, first)
    os.kill(first, signal.SIGKILL)
    assert cause(gate.judge_prompts(["a cat"])) is Cause.GATE_DOWN
    assert verdict(gate, "a cat")[0] is Outcome.BLOCK
    gate.use(Rules("no policy"))
    assert cause(gate.judge_prompts(["a cat"])) is Cause.GATE_DOWN, "not judged by what was in force before"


def test_a_gate_that_does_not_load_is_down_with_its_reason(settings: Settings) -> None:
    (answer,) = RemoteGate(settings, JUDGE, ["broken"]).judge_prompts(["a cat"])
    assert isinstance(answer, Fault)
    assert answer.cause is Cause.GATE_DOWN
    assert "this policy does not load" in answer.detail


def test_one_of_two_that_dies_is_replaced_while_the_other_goes_on(settings: Settings, tmp_path: Path) -> None:
    two = RemoteGate(settings.model_copy(update={"gates": 2}), JUDGE, ["gun"])
    with ThreadPoolExecutor(1) as thread:
        busy = thread.submit(verdict, two, f"until {tmp_path / 'told'}")
        try:
            until(lambda: len(two.idle) == 1)
            first = pid(two)
            assert cause(two.judge_prompts(["die"])) is Cause.GATE_ERROR
        finally:
            (tmp_path / "told").touch()
        assert busy.result()[1] != first
    assert pid(two) == busy.result()[1], "rather that one than the one that is made ready"
    assert all(seat.actor is not None for seat in two.seats)


def test_of_a_ray_that_is_gone_no_other_gate_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray ends a process that has waited a minute for a lost head: the dispatcher, with all that it draws."""

    def gone(_: Settings) -> str:
        raise Fault(Cause.RAY_GONE, "it does not answer")

    seat = Seat(Settings(home=tmp_path), JUDGE, ["gun"])
    seat.actor, seat.connection, seat.warm = object(), "a lost one", True
    monkeypatch.setattr(cluster, "connect", gone)
    monkeypatch.setattr(Seat, "_make", lambda *_: pytest.fail("it asked Ray"))
    monkeypatch.setattr(Seat, "_end", lambda _: pytest.fail("it asked Ray"))
    seat._replace(None)
    assert (seat.actor, seat.warm) == (None, False)


def test_only_named_methods_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    host = Host(JUDGE, ("gun",), "cpu", None)
    host.load()
    with pytest.raises(PermissionError, match="may not be called"):
        host.call("forbidden", (), 5.0)
    assert "forbidden" not in METHODS
    ((answer),) = host.call("judge_prompts", (["a cat"],), 5.0)
    assert answer.encoder == "cpu, sees '', threads 2", "it has asked for no GPU, and its node may have some"
