"""A small random ViT beside the encoder: one verdict of both, stored and judged again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from farm.cli import _run
from farm.errors import Fault
from farm.job import Cause
from farm.ports import Frame, Outcome, Stage, Verdict
from safety.calibrate import Fitted, applied
from safety.classifier import open_classifier
from safety.clauses import Calibration
from safety.clip import as_image
from safety.files import folder_hash
from safety.gate import ClipGate
from safety.policy import DEMO, Policy, parse
from safety.scoring import Kind, Stored, measure_of, rescored
from tests.safety.conftest import some
from training import clip_set

CLASSES = {0: "calm", 1: "cruel", 2: "rude"}
WEIGHTS = "model.safetensors"


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    config.image_size, config.patch_size = 32, 8
    config.id2label, config.label2id = CLASSES, {name: i for i, name in CLASSES.items()}
    folder = tmp_path / "vit"
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def spoil(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def says_always(folder: Path, *logits: float) -> None:
    """Whatever it sees."""
    bias = torch.tensor(logits)
    spoil(folder, lambda weights: weights.update({"classifier.weight": torch.zeros(3, 16), "classifier.bias": bias}))


def policy_of(folder: Path, a: float | None = 1.0, labels: tuple[str, ...] = ("cruel",)) -> Policy:
    document: dict[str, Any] = yaml.safe_load(DEMO.read_text())
    said = folder_hash(folder)
    speaks: dict[str, Any] = {"concept": "red-triangle", "labels": list(labels)}
    if a is not None:
        speaks["calibration"] = {"encoder": said, "a": a, "b": 0.0}
    document["concepts"][0]["band"] = {"t_low": 0.2, "t_high": 0.8}
    document["classifier"] = {"folder": str(folder), "sha256": said, "speaks": [speaks]}
    return parse(json.dumps(document))


def one_verdict(gate: ClipGate, policy: Policy, frame: Frame) -> Verdict:
    (found,) = ClipGate(policy, gate.encoder).judge_frames([frame], Stage.FRAME)
    assert isinstance(found, Verdict), found
    return found


@pytest.mark.parametrize(("logit", "outcome"), [(-5.0, Outcome.ALLOW), (0.0, Outcome.REVIEW), (5.0, Outcome.BLOCK)])
def test_it_speaks_under_the_bands_of_its_concept(gate: ClipGate, vit: Path, logit: float, outcome: Outcome) -> None:
    says_always(vit, 0.0, logit, -20.0)
    verdict = one_verdict(gate, policy_of(vit), some("green", "star"))
    assert verdict.outcome is outcome
    if outcome is not Outcome.ALLOW:
        assert (verdict.concept, verdict.view) == ("red-triangle", "whole")
        assert verdict.margin == pytest.approx(logit, abs=0.01)
        assert verdict.probability == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-3)


def test_the_surer_of_encoder_and_classifier_decides(gate: ClipGate, vit: Path) -> None:
    says_always(vit, 0.0, -5.0, -5.0)
    assert one_verdict(gate, policy_of(vit), some("red", "triangle")).outcome is Outcome.BLOCK


def test_the_margin_is_the_log_odds_of_its_classes(gate: ClipGate, vit: Path) -> None:
    frame = some("red", "star")
    policy = policy_of(vit, a=1e-4, labels=("cruel", "rude"))
    model = ViTForImageClassification.from_pretrained(vit).eval()
    pixels = ViTImageProcessor.from_pretrained(vit)(images=as_image(frame), return_tensors="pt")
    odds = model(**pixels).logits.softmax(-1)[0, 1:].sum().item()
    assert policy.classifier is not None
    (found,) = open_classifier(policy.classifier).log_odds([as_image(frame)])
    assert found[0] == pytest.approx(np.log(odds / (1 - odds)), abs=1e-3)


def test_wide_pictures_are_seen_whole_and_in_squares(gate: ClipGate, vit: Path) -> None:
    wide = Frame(192, 64, np.random.default_rng(1).integers(0, 255, 192 * 64 * 3, np.uint8).tobytes())
    verdict = one_verdict(gate, policy_of(vit), wide)
    assert verdict.embedding is not None
    dim = measure_of(policy_of(vit), gate.encoder()).texts_TD.shape[1]
    column = np.frombuffer(verdict.embedding, np.float16).reshape(-1, dim)[:, -1]
    assert (column > -100).sum() == 1 + 1 + 5  # whole, centre, squares half overlapping
    assert (column[column > -100] != column[0]).any()


def test_what_it_said_is_stored_and_judged_again(gate: ClipGate, vit: Path) -> None:
    says_always(vit, 0.0, 1.0, -20.0)
    frame = some("green", "star")
    verdict = one_verdict(gate, policy_of(vit), frame)
    assert verdict.embedding is not None
    stored = Stored(Stage.FRAME, verdict.subject, frame.width, frame.height, verdict.encoder, verdict.embedding)
    stricter = policy_of(vit, a=5.0)
    (again,) = rescored(measure_of(stricter, gate.encoder()), [stored])
    assert isinstance(again, Verdict)
    assert (verdict.outcome, again.outcome) == (Outcome.REVIEW, Outcome.BLOCK)
    says_always(vit, 1.0, 0.0, 0.0)
    (other,) = rescored(measure_of(policy_of(vit), gate.encoder()), [stored])
    assert isinstance(other, Fault)


def test_uncalibrated_it_sends_everything_to_review(gate: ClipGate, vit: Path) -> None:
    verdict = one_verdict(gate, policy_of(vit, a=None), some("green", "star"))
    assert (verdict.outcome, verdict.probability) == (Outcome.REVIEW, None)


def no_folder(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / WEIGHTS).unlink()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda folder: says_always(folder, 0.0, 1.0, 2.0), "not the classifier that the policy means"),
        (no_folder, "not the classifier that the policy means"),
    ],
)
def test_another_classifier_than_the_policy_means_judges_nothing(
    gate: ClipGate, vit: Path, wrong: Callable[[Path], None], told: str
) -> None:
    policy = policy_of(vit)
    wrong(vit)
    (fault,) = ClipGate(policy, gate.encoder).judge_frames([some("green", "star")], Stage.FRAME)
    assert isinstance(fault, Fault)
    assert fault.cause is Cause.GATE_DOWN
    assert told in fault.detail


def only_a_pickle(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (only_a_pickle, "does not open"),
        (lambda folder: spoil(folder, lambda weights: weights["classifier.bias"].fill_(torch.nan)), "not finite"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "does not open"),
    ],
)
def test_one_that_does_not_open_or_is_broken_stops_the_gate(
    gate: ClipGate, vit: Path, wrong: Callable[[Path], None], told: str
) -> None:
    wrong(vit)
    (fault,) = ClipGate(policy_of(vit), gate.encoder).judge_frames([some("green", "star")], Stage.FRAME)
    assert isinstance(fault, Fault)
    assert fault.cause is Cause.GATE_DOWN
    assert told in fault.detail


@pytest.mark.parametrize(
    ("labels", "told"), [(("crule",), "did you mean 'cruel'"), (("calm", "cruel", "rude"), "none is left against")]
)
def test_labels_are_classes_of_it_and_not_all(gate: ClipGate, vit: Path, labels: tuple[str, ...], told: str) -> None:
    policy = policy_of(vit, labels=labels)
    assert policy.classifier is not None
    with pytest.raises(Fault, match=told):
        open_classifier(policy.classifier)


def test_its_calibration_is_written_where_it_belongs(vit: Path) -> None:
    policy = policy_of(vit, a=None)
    assert policy.classifier is not None
    own = Calibration(policy.classifier.sha256, 2.0, -1.0)
    triangle = Fitted(
        "red-triangle", 9, 9, {Kind.PHRASES: Calibration("e" * 64, 3.0, 0.5), Kind.CLASSIFIER: own}, 0.1, 0.9
    )
    found = parse(json.dumps(applied(policy.document, [triangle, Fitted("red-ring", 0, 0, why="too few")])))
    assert found.classifier is not None
    assert found.classifier.speaks[0].calibration == own
    assert found.concepts[0].calibration == Calibration("e" * 64, 3.0, 0.5)
    assert found.concepts[1].calibration is None


def test_eval_looks_with_each_policys_own_classifier(
    vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    says_always(vit, 0.0, 9.0, -20.0)
    (tmp_path / "p.yaml").write_text(policy_of(vit).document)
    drawn = clip_set.write(tmp_path / "drawn", 12, seed=3)
    assert _run(["policy", "eval", "p.yaml", "--against", str(DEMO), "--csv", str(drawn), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["per_1000"]["block"]["value"] == 1000
    flipped = sum(row["pictures"] for row in report["flips"]["counts"])
    assert 0 < flipped < 12
    assert {row["to"] for row in report["flips"]["counts"]} == {"block"}
