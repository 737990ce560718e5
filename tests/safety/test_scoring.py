"""Stored embeddings are judged without pictures, as the gate judged them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import save_file
from torch import Tensor

from farm.errors import Fault
from farm.job import Cause
from farm.ports import Frame, Outcome, Stage, Verdict
from safety.files import file_hash
from safety.gate import ClipGate
from safety.policy import DEMO, Policy, load, parse
from safety.scoring import Stored, margins, measure_of, packed, rescored, view_names
from tests.safety.conftest import some

KINDS = [("red", "triangle"), ("red", "ring"), ("red", "circle"), ("blue", "triangle"), ("green", "star")]
SIZE = (128, 128)
VIEWS = len(view_names(*SIZE))


class FewTexts:
    """Each phrase a direction of its own, in a space small enough to reckon by hand."""

    fingerprint = "f" * 64

    def encode_texts(self, phrases: Sequence[str]) -> Tensor:
        known = ["a red triangle", "no red triangle", "a red ring", "no red ring"]
        bare = [next(i for i, word in enumerate(known) if word in phrase) for phrase in phrases]
        return torch.eye(4)[bare]


def demo(**changes: object) -> Policy:
    document = yaml.safe_load(DEMO.read_text())
    for concept in document["concepts"]:
        concept["calibration"] |= {"encoder": FewTexts.fingerprint, "a": 10.0, "b": 0.0}
        concept["band"]["t_low"] = 0.5
    document["concepts"][0]["band"] = {"t_low": 0.2, "t_high": 0.8}
    document["concepts"][0] |= changes
    return parse(yaml.safe_dump(document))


def stored_as(rows: np.ndarray, stage: Stage = Stage.FRAME, subject: str = "s") -> Stored:
    return Stored(stage, subject, *SIZE, FewTexts.fingerprint, packed(rows))


def one_verdict(policy: Policy, stored: Stored) -> Verdict:
    (found,) = rescored(measure_of(policy, FewTexts()), [stored])
    assert isinstance(found, Verdict)
    return found


def again(frame: Frame, verdict: Verdict) -> Stored:
    assert verdict.embedding is not None
    return Stored(verdict.stage, verdict.subject, frame.width, frame.height, verdict.encoder, verdict.embedding)


def test_what_the_gate_said_is_said_again_of_the_stored_embedding(gate: ClipGate) -> None:
    frames = [some(*kind, seed) for kind in KINDS for seed in range(4)]
    first = gate.judge_frames(frames, Stage.FRAME)
    stored = [again(frame, one) for frame, one in zip(frames, first, strict=True) if isinstance(one, Verdict)]
    second = rescored(measure_of(load(), gate.encoder()), stored)
    assert {one.outcome for one in first if isinstance(one, Verdict)} == set(Outcome)
    for one, other in zip(first, second, strict=True):
        assert isinstance(one, Verdict)
        assert isinstance(other, Verdict)
        assert replace(other, margin=one.margin, probability=one.probability, pdq=one.pdq) == one
        assert other.margin == pytest.approx(one.margin, abs=1e-6)


def test_the_view_and_the_margin_are_those_that_stand_out_most() -> None:
    rows = np.zeros((VIEWS, 4))
    rows[:, 1] = 0.5
    rows[3] = (0.75, 0.25, 0, 0)
    verdict = one_verdict(demo(), stored_as(rows))
    assert (verdict.concept, verdict.margin, verdict.view) == ("red-triangle", 0.5, view_names(*SIZE)[3])
    assert verdict.probability == pytest.approx(1 / (1 + np.exp(-5)))
    assert verdict.outcome is Outcome.BLOCK


def test_each_picture_answers_for_itself() -> None:
    rows = np.zeros((VIEWS, 4))
    rows[:, 0] = 1
    sound = stored_as(rows)
    bad = [
        stored_as(np.where(np.arange(VIEWS)[:, None] == 2, np.nan, rows)),
        stored_as(np.where(np.arange(VIEWS)[:, None] == 2, np.inf, rows)),
        stored_as(rows[:-1]),
        replace(sound, encoder="0" * 64),
        replace(sound, stage=Stage.PROMPT),
        replace(sound, embedding=b""),
    ]
    mixed = [sound, *bad, replace(sound, subject="last")]
    found = rescored(measure_of(demo(), FewTexts()), mixed)
    assert [isinstance(one, Fault) for one in found] == [False, *[True] * len(bad), False]
    assert [one.subject for one in found if isinstance(one, Verdict)] == ["s", "last"]
    assert all(isinstance(one, Fault) for one in rescored(measure_of(demo(), FewTexts()), bad))
    assert rescored(measure_of(demo(), FewTexts()), []) == []


def test_a_concept_is_asked_only_at_its_stages_though_all_come_together() -> None:
    rows = np.zeros((VIEWS, 4))
    rows[:, 0] = 1
    measure = measure_of(demo(applies=["frame"]), FewTexts())
    found = rescored(measure, [stored_as(rows, stage) for stage in (Stage.INPUT, Stage.FRAME, Stage.PREVIEW)])
    assert [one.outcome for one in found if isinstance(one, Verdict)] == [Outcome.REVIEW, Outcome.BLOCK, Outcome.BLOCK]
    assert [one.concept for one in found if isinstance(one, Verdict)] == ["red-ring", "red-triangle", "red-triangle"]


def test_what_is_not_calibrated_wins_over_what_is_allowed_and_not_over_a_block() -> None:
    policy, rows = demo(calibration=None), np.zeros((VIEWS, 4))
    rows[:, [1, 3]] = 0.7
    verdict = one_verdict(policy, stored_as(rows))
    assert (verdict.outcome, verdict.concept, verdict.probability) == (Outcome.REVIEW, "red-triangle", None)
    assert "not calibrated" in verdict.reason


def test_a_phrase_of_nan_is_a_fault() -> None:
    class Broken(FewTexts):
        def encode_texts(self, phrases: Sequence[str]) -> Tensor:
            return super().encode_texts(phrases) * torch.nan

    with pytest.raises(Fault, match="embedding of a phrase"):
        measure_of(demo(), Broken())


def with_head(tmp_path: Path, **parts: np.ndarray) -> Policy:
    file = tmp_path / "head.safetensors"
    save_file(parts, file)
    calibration = {"encoder": FewTexts.fingerprint, "a": 1.0, "b": 0.0}
    return demo(head={"file": str(file), "sha256": file_hash(file), "calibration": calibration})


def test_a_head_speaks_beside_the_phrases_under_the_same_band(tmp_path: Path) -> None:
    weight = np.array([0, 0, 0, 8], np.float32)
    policy = with_head(tmp_path, weight=weight, bias=np.array([-4], np.float32))
    rows = np.zeros((VIEWS, 4))
    rows[:, 1] = 0.5
    rows[2, 3] = 0.75  # of which the phrases think nothing, and the head 8 * 0.75 - 4
    verdict = one_verdict(policy, stored_as(rows))
    assert (verdict.concept, verdict.margin, verdict.view) == ("red-triangle", 2.0, view_names(*SIZE)[2])
    assert verdict.probability == pytest.approx(1 / (1 + np.exp(-2)))
    assert verdict.outcome is Outcome.BLOCK
    rows[:, 0] = 1  # now the phrases are surer than the head
    assert one_verdict(policy, stored_as(rows)).margin == pytest.approx(0.5)


def test_a_head_that_is_not_calibrated_sends_everything_to_review(tmp_path: Path) -> None:
    policy = with_head(tmp_path, weight=np.zeros(4, np.float32), bias=np.zeros(1, np.float32))
    document = json.loads(policy.document)
    del document["concepts"][0]["head"]["calibration"]
    rows = np.zeros((VIEWS, 4))
    rows[:, [1, 3]] = 0.7
    verdict = one_verdict(parse(json.dumps(document)), stored_as(rows))
    assert (verdict.outcome, verdict.probability) == (Outcome.REVIEW, None)


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"weight": np.zeros(3, np.float32), "bias": np.zeros(1, np.float32)}, r"weight \[4\]"),
        ({"weight": np.zeros(4, np.float32)}, "bias"),
        ({"weight": np.full(4, np.nan, np.float32), "bias": np.zeros(1, np.float32)}, "not finite"),
    ],
)
def test_a_head_that_does_not_fit_stops_the_gate(tmp_path: Path, parts: dict[str, np.ndarray], told: str) -> None:
    policy = with_head(tmp_path, **parts)
    with pytest.raises(Fault, match=told) as caught:
        measure_of(policy, FewTexts())
    assert caught.value.cause is Cause.GATE_DOWN


def test_a_head_that_is_gone_or_another_stops_the_gate(tmp_path: Path) -> None:
    policy = with_head(tmp_path, weight=np.zeros(4, np.float32), bias=np.zeros(1, np.float32))
    (tmp_path / "head.safetensors").write_bytes(b"another")
    with pytest.raises(Fault, match="not the head that the policy means"):
        measure_of(policy, FewTexts())
    (tmp_path / "head.safetensors").unlink()
    with pytest.raises(Fault, match="missing"):
        measure_of(policy, FewTexts())


unit_rows = arrays.arrays(np.float32, (VIEWS, 4), elements=st.floats(-1, 1, width=16))


@given(st.lists(unit_rows, min_size=1, max_size=6))
def test_together_or_alone_the_verdict_is_the_same(pictures: list[np.ndarray]) -> None:
    measure = measure_of(demo(), FewTexts())
    stored = [stored_as(rows, subject=str(i)) for i, rows in enumerate(pictures)]
    together = rescored(measure, stored)
    alone = [rescored(measure, [one])[0] for one in stored]
    assert together == alone
    for one, rows in zip(together, pictures, strict=True):
        assert isinstance(one, Verdict)
        s = [scale.concept.name for scale in measure.scales].index(one.concept or "")
        assert one.margin == pytest.approx(margins(measure, rows)[:, s].max())
