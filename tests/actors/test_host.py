"""The gate in its own actor: it fails closed, and comes back."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest
import ray

from actors.host import CALL_S, HARMLESS, Host, RemoteGate
from farm.config import Settings
from farm.errors import Fault
from farm.job import Cause
from farm.ports import Frame, Outcome, Rules, Stage, Verdict

JUDGE = "tests.actors.fakes:load_judge"


@pytest.fixture
def gate(settings: Settings) -> RemoteGate:
    return RemoteGate(settings, JUDGE, ["gun"])


def pid(gate: RemoteGate) -> int:
    (verdict,) = gate.judge_prompts(["a cat"])
    assert isinstance(verdict, Verdict)
    return int(verdict.subject)


def cause(ask: Callable[[], object]) -> Cause:
    with pytest.raises(Fault) as caught:
        ask()
    return caught.value.cause


def test_verdicts_and_faults_come_back_in_order(gate: RemoteGate) -> None:
    allowed, fault, blocked = gate.judge_prompts(["a cat", "fault", "a gun"])
    assert isinstance(allowed, Verdict)
    assert isinstance(blocked, Verdict)
    assert isinstance(fault, Fault)
    assert (allowed.outcome, fault.cause, blocked.outcome) == (Outcome.ALLOW, Cause.GATE_ERROR, Outcome.BLOCK)
    assert int(allowed.subject) != os.getpid()


def test_rules_reach_the_actor_with_the_next_call_and_every_later_actor(gate: RemoteGate) -> None:
    first = pid(gate)
    gate.use(Rules("cat"))
    (verdict,) = gate.judge_prompts(["a cat"])
    assert isinstance(verdict, Verdict)
    assert (verdict.outcome, int(verdict.subject)) == (Outcome.BLOCK, first)
    os.kill(first, signal.SIGKILL)
    assert cause(lambda: gate.judge_prompts(["a cat"])) is Cause.GATE_DOWN
    (verdict,) = gate.judge_prompts(["a cat"])
    assert isinstance(verdict, Verdict)
    assert verdict.outcome is Outcome.BLOCK


def test_what_ends_the_gate_pays_for_it_and_the_gate_works_again(gate: RemoteGate) -> None:
    first = pid(gate)
    assert cause(lambda: gate.judge_prompts(["die"])) is Cause.GATE_ERROR
    assert pid(gate) != first


def test_killed_between_two_questions_it_is_down_and_then_works_again(gate: RemoteGate) -> None:
    first = pid(gate)
    os.kill(first, signal.SIGKILL)
    assert cause(lambda: gate.judge_prompts(["a cat"])) is Cause.GATE_DOWN
    assert pid(gate) != first


def test_what_hangs_the_gate_pays_for_it(settings: Settings) -> None:
    gate = RemoteGate(settings, JUDGE, ["gun"], call_s=1.0)
    assert cause(lambda: gate.judge_prompts(["hang"])) is Cause.GATE_ERROR
    pid(gate)


def test_what_hangs_the_gate_as_a_preview_does_not_keep_it_from_finished_frames_for_long(settings: Settings) -> None:
    gate = RemoteGate(settings, JUDGE, ["hangs at previews"], preview_s=1.0)
    frame = Frame(1, 1, bytes(3))
    (before,) = gate.judge_frames([frame], Stage.FRAME)
    began = time.monotonic()
    assert cause(lambda: gate.judge_frames([frame], Stage.PREVIEW)) is Cause.GATE_ERROR
    assert gate.judge_frames([frame], Stage.FRAME) == [before]
    assert time.monotonic() - began < CALL_S


@pytest.mark.parametrize("word", ["dies when asked", "dies when made"])
def test_a_gate_that_dies_before_it_is_asked_is_nobody_s_fault(settings: Settings, word: str) -> None:
    assert cause(lambda: RemoteGate(settings, JUDGE, [word]).judge_prompts(["a cat"])) is Cause.GATE_DOWN


def test_what_it_raises_is_no_verdict_and_no_restart(gate: RemoteGate) -> None:
    first = pid(gate)
    assert cause(lambda: gate.judge_prompts(["odd"])) is Cause.GATE_ERROR
    assert pid(gate) == first


def test_too_few_answers_are_refused(gate: RemoteGate) -> None:
    frames = [Frame(1, 1, bytes((shade, 0, 0))) for shade in (1, 2)]
    assert cause(lambda: gate.judge_frames(frames, Stage.FRAME)) is Cause.GATE_ERROR


def test_a_gate_that_does_not_load_is_down_with_its_reason(settings: Settings) -> None:
    with pytest.raises(Fault, match="this policy does not load") as caught:
        RemoteGate(settings, JUDGE, ["broken"]).judge_prompts(["a cat"])
    assert caught.value.cause is Cause.GATE_DOWN


def test_only_named_methods_are_called(settings: Settings, gate: RemoteGate, monkeypatch: pytest.MonkeyPatch) -> None:
    pid(gate)
    with pytest.raises(ray.exceptions.RayTaskError, match="may not be called"):
        ray.get(gate.actor.call.remote("forbidden", (), 5.0))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    host = Host(JUDGE, ("gun",), ("forbidden",))
    host.load(*HARMLESS)
    assert host.call("forbidden", (), 5.0) == "this was not to be called"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "", "it has asked for no GPU, and its node may have some"
