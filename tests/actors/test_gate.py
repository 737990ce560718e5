"""What the gate is asked is spread over its actors, and each answer is that of its own subject."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.gate import TOGETHER, RemoteGate, parts
from actors.host import Seat, device_of
from farm.config import PoolSpec, Settings
from farm.errors import Fault
from farm.job import Cause
from farm.ports import Frame, Outcome, Rules, Stage, Verdict

BAD, AWAY, FEW = 66, 77, 88  # shades that end the gate, find it away, and leave it at a loss for the others


class Chair:
    """Stands in for a seat with a gate."""

    warm = True

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def ask(self, method: str, args: tuple[Any, ...], limit_s: float, rules: Rules | None) -> list[Verdict]:
        frames, stage = args
        shades = [frame.pixels[0] for frame in frames]
        self.calls.append(shades)
        if BAD in shades:
            raise Fault(Cause.GATE_ERROR, "it died of what it was asked")
        if AWAY in shades:
            raise Fault(Cause.RAY_GONE, "no head answers")
        made = [Verdict(stage, frame.sha256, Outcome.ALLOW, "policy", "encoder") for frame in frames]
        return made[:1] if FEW in shades else made


def gate_of(gates: int) -> tuple[RemoteGate, list[Chair]]:
    gate, chairs = RemoteGate(Settings(gates=gates), "nowhere:at_all"), [Chair() for _ in range(gates)]
    gate.seats = gate.idle = cast("list[Seat]", list(chairs))
    return gate, chairs


def frames_of(shades: Sequence[int]) -> list[Frame]:
    return [Frame(1, 1, bytes((shade, 0, 0))) for shade in shades]


@given(st.lists(st.integers(0, 255), max_size=50), st.integers(1, 5))
def test_every_frame_gets_its_own_answer_and_who_ends_a_gate_alone_pays(shades: list[int], gates: int) -> None:
    gate, chairs = gate_of(gates)
    frames = frames_of([shade for shade in shades if shade not in (AWAY, FEW)])
    answers = gate.judge_frames(frames, Stage.FRAME)
    for frame, answer in zip(frames, answers, strict=True):
        if frame.pixels[0] == BAD:
            assert isinstance(answer, Fault)
            assert answer.cause is Cause.GATE_ERROR
        else:
            assert isinstance(answer, Verdict)
            assert answer.subject == frame.sha256
    assert max((len(call) for chair in chairs for call in chair.calls), default=0) <= TOGETHER


def test_an_outage_is_that_of_all_who_were_asked_together() -> None:
    gate, (chair,) = gate_of(1)
    answers = gate.judge_frames(frames_of([1, AWAY, 2]), Stage.FRAME)
    assert {answer.cause for answer in answers if isinstance(answer, Fault)} == {Cause.RAY_GONE}
    assert len(answers) == 3
    assert len(chair.calls) == 1


def test_with_too_few_answers_none_is_given_to_somebody_else() -> None:
    gate, (chair,) = gate_of(1)
    frames = frames_of([1, FEW, 2])
    answers = gate.judge_frames(frames, Stage.FRAME)
    assert [answer.subject for answer in answers if isinstance(answer, Verdict)] == [one.sha256 for one in frames]
    assert chair.calls == [[1, FEW, 2], [1], [FEW], [2]]


def test_a_gate_that_is_not_ready_is_asked_only_where_the_others_are_busy() -> None:
    gate, (cold, warm) = gate_of(2)
    cold.warm = False
    for shade in (1, 2):
        gate.judge_frames(frames_of([shade]), Stage.FRAME)
    assert (cold.calls, warm.calls) == ([], [[1], [2]])


@given(st.lists(st.integers(), max_size=300), st.integers(1, 8))
def test_parts_are_of_one_size_and_leave_nobody_out(some: list[int], gates: int) -> None:
    found = parts(some, gates)
    assert [one for part in found for one in part] == some
    sizes = {len(part) for part in found}
    assert max(sizes, default=0) - min(sizes, default=0) <= 1
    assert max(sizes, default=0) <= TOGETHER
    assert len(found) >= min(gates, len(some))


@pytest.mark.parametrize(
    ("asked", "there", "free", "device"),
    [
        ("auto", 0.0, 0.0, "cpu"),
        ("auto", 4.0, 4.0, "cpu"),  # the gangs may come to need all of them
        ("auto", 5.0, 5.0, "cuda"),
        ("auto", 5.0, 0.0, "cpu"),  # others have taken them
        ("cpu", 5.0, 5.0, "cpu"),
        ("cuda", 4.0, 0.0, "cuda"),
    ],
)
def test_a_gate_takes_a_gpu_that_no_gang_may_need(
    asked: str, there: float, free: float, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.host.catalogue", dict)
    pools = (PoolSpec(model="flux1-dev", max=2, tensor=2), PoolSpec(model="tiny", device="cpu", max=9))
    monkeypatch.setattr("actors.plan.pools_of", lambda *_: pools)
    assert device_of(Settings(gate_device=asked, pools=pools), there, free) == device


def test_told_to_use_a_gpu_where_none_is_it_is_away_and_says_what_to_do() -> None:
    with pytest.raises(Fault, match="set FARM_GATE_DEVICE") as caught:
        device_of(Settings(gate_device="cuda"), 0.0, 0.0)
    assert caught.value.cause is Cause.GATE_DOWN
