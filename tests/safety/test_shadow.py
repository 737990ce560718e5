"""The policy in shadow judges what the one in force judges, and whatever is wrong with it, the verdicts stand."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import Mock, patch

import pytest
import yaml

from farm.errors import Fault
from farm.job import Cause
from farm.ports import Outcome, Rules, Stage, Verdict
from safety.gate import ClipGate, load_gate
from safety.policy import DEMO, load, parse
from tests.safety.conftest import some

FRAMES = [some("red", "circle"), some("red", "triangle"), some("green", "star")]


def shadowed() -> str:
    """Under which triangles are looked at by a person, and whose prompt rules are others."""
    document = yaml.safe_load(DEMO.read_text())
    document["concepts"][0]["band"] = {"t_low": 0.2}
    rule = {"name": "stars", "patterns": ["star*"], "outcome": "block", "words": "No stars."}
    return parse(yaml.safe_dump(document | {"prompt_rules": [rule]})).document


@pytest.fixture(scope="module")
def own() -> ClipGate:
    return load_gate("", "cpu")


def verdicts(gate: ClipGate, stage: Stage = Stage.FRAME) -> list[Verdict]:
    found = [*gate.judge_frames(FRAMES, stage), *gate.judge_prompts(["a star", "a weapon"])]
    assert all(isinstance(one, Verdict) for one in found)
    return [one for one in found if isinstance(one, Verdict)]


def test_each_verdict_carries_the_other_one_and_is_what_it_would_be_alone(own: ClipGate) -> None:
    own.use(Rules(load().document))
    alone = verdicts(own)
    own.use(Rules(load().document, shadowed()))
    both = verdicts(own)
    assert [replace(one, shadow=None) for one in both] == alone
    assert [one.outcome for one in both] == ["allow", "block", "allow", "allow", "block"]
    beside = [one.shadow for one in both if one.shadow]
    assert [one.outcome for one in beside] == ["allow", "review", "allow", "block", "allow"]
    assert {one.policy for one in beside} == {parse(shadowed()).hash}
    assert {one.embedding for one in beside} == {None}


def test_a_preview_is_judged_once(own: ClipGate) -> None:
    own.use(Rules(load().document, shadowed()))
    assert [one.shadow for one in verdicts(own, Stage.PREVIEW)[:3]] == [None] * 3


@pytest.mark.parametrize("document", ["[", '{"name": "x"}'])
def test_a_shadow_that_is_no_policy_changes_nothing(own: ClipGate, document: str) -> None:
    own.use(Rules(load().document, document))
    found = verdicts(own)
    assert {one.shadow for one in found} == {None}
    assert found[1].outcome is Outcome.BLOCK


def test_a_shadow_that_breaks_changes_nothing(own: ClipGate) -> None:
    own.use(Rules(load().document, shadowed()))
    breaks = {"rescored": MemoryError, "judge_prompt": OSError}
    with patch.multiple("safety.shadow", **{name: Mock(side_effect=error) for name, error in breaks.items()}):
        found = verdicts(own)
    assert {one.shadow for one in found} == {None}
    assert found[1].outcome is Outcome.BLOCK


def test_what_it_cannot_judge_is_said_once_for_each_reason(own: ClipGate, caplog: pytest.LogCaptureFixture) -> None:
    own.use(Rules(load().document, shadowed()))
    fault = Fault(Cause.GATE_ERROR, "the embedding is of another encoder")
    with patch("safety.shadow.rescored", lambda measure, stored: [fault for _ in stored]):
        for _ in range(2):
            assert {one.shadow for one in verdicts(own)[: len(FRAMES)]} == {None}
    assert caplog.text.count("the policy in shadow cannot judge, 3 here") == 1
    assert "of another encoder" in caplog.text
