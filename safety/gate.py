"""The gate: one verdict for each prompt and each frame under one policy, or a fault. It fails closed.

Shapes: V views of a frame, D the embedding, P phrases of a concept, Q phrases of its contrast.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from farm.errors import FarmError, Fault
from farm.job import Cause
from farm.ports import Frame, Outcome, Rules, Stage, Verdict
from safety.clip import Encoder, as_image, load_encoder, unit, views
from safety.policy import Concept, Policy, load, parse
from safety.prompt import SEVERITY, judge_prompt

FLAT = 8  # a picture whose channels vary by less shows nothing to judge
FLAT_WORDS = "The picture is one flat colour, which the filter cannot judge, so a person looks at it."
UNCALIBRATED_WORDS = "The filter's encoder is not calibrated for {!r} yet, so a person looks at every picture."


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one concept says of one frame."""

    concept: Concept
    outcome: Outcome
    margin: float
    probability: float | None
    view: int

    @property
    def words(self) -> str:
        if self.probability is None:
            return UNCALIBRATED_WORDS.format(self.concept.name)
        return self.concept.words if self.outcome is not Outcome.ALLOW else ""


class ClipGate:
    """Implements farm.ports.Gate. The encoder is opened at the first frame, and again until that works."""

    def __init__(self, policy: Policy, open_encoder: Callable[[], Encoder]) -> None:
        self.policy = policy
        self._open = open_encoder
        self._encoder: Encoder | None = None
        self._lock = threading.Lock()

    def use(self, rules: Rules) -> None:
        self.policy = parse(rules.policy)

    def judge_prompts(self, prompts: Sequence[str]) -> list[Verdict | Fault]:
        return [guarded(partial(judge_prompt, self.policy, prompt), "prompt") for prompt in prompts]

    def judge_frames(self, frames: Sequence[Frame], stage: Stage) -> list[Verdict | Fault]:
        """Together if that works; else one by one, so that a bad frame spoils only its own verdict."""
        try:
            encoder = self.encoder()
        except Fault as fault:
            return [fault for _ in frames]
        together = guarded(partial(encoder.encode_frames, frames), "frames")
        if isinstance(together, Fault):
            return [guarded(partial(self.judge_alone, encoder, frame, stage), "frame") for frame in frames]
        pairs = zip(frames, together, strict=True)
        return [guarded(partial(self.judge, encoder, frame, stage, rows), "frame") for frame, rows in pairs]

    def encoder(self) -> Encoder:
        """No job pays for an encoder that does not open, or is broken: whatever the reason, the work waits."""
        with self._lock:
            if self._encoder is None:
                try:
                    self._encoder = self._open()
                except Fault:
                    raise
                except Exception as error:
                    raise Fault(Cause.GATE_DOWN, f"the gate's encoder does not open: {error}") from error
            return self._encoder

    def judge_alone(self, encoder: Encoder, frame: Frame, stage: Stage) -> Verdict:
        return self.judge(encoder, frame, stage, encoder.encode_frames([frame])[0])

    def judge(self, encoder: Encoder, frame: Frame, stage: Stage, rows_VD: Tensor) -> Verdict:
        if stage is Stage.PROMPT:
            raise ValueError("a frame is judged as input, frame or preview, not as prompt")
        finite(rows_VD, "the embedding of the picture")
        concepts = self.policy.concepts_of(stage)
        found = max((find(self.policy, encoder, concept, rows_VD) for concept in concepts), key=weight)
        outcome, words = found.outcome, found.words
        if is_flat(frame):
            outcome, words = Outcome.REVIEW, FLAT_WORDS
        return Verdict(
            stage,
            frame.sha256,
            outcome,
            self.policy.hash,
            encoder.fingerprint,
            concept=found.concept.name,
            margin=found.margin,
            probability=found.probability,
            view=views(frame.width, frame.height)[found.view].name,
            reason=words,
            embedding=rows_VD.to(torch.float16).numpy().tobytes(),
        )


def load_gate(policy_path: str = "", encoder: str = "", device: str = "cpu") -> ClipGate:
    """The factory: empty strings mean the bundled policy and the bundled tiny encoder; device `auto` asks torch."""
    policy = load(policy_path or None)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return ClipGate(policy, lambda: load_encoder(encoder, device))


def guarded(judge: Callable[[], T], what: str) -> T | Fault:
    """Law 4: whatever goes wrong becomes a fault with its cause, never an answer."""
    try:
        return judge()
    except Fault as fault:
        return fault
    except FarmError as error:
        return Fault(Cause.GATE_ERROR, str(error))
    except Exception as error:
        return Fault(Cause.GATE_ERROR, f"the gate could not judge the {what}: {type(error).__name__}: {error}")


def find(policy: Policy, encoder: Encoder, concept: Concept, rows_VD: Tensor) -> Finding:
    """The view in which the concept stands out most against its contrast, and what its band says of that."""
    for_PD = ensemble(policy, encoder, concept.phrases)
    against_QD = ensemble(policy, encoder, concept.contrast)
    margin_V = (rows_VD @ for_PD.T).amax(dim=1) - (rows_VD @ against_QD.T).amax(dim=1)
    finite(margin_V, f"the score of {concept.name}")
    view = int(margin_V.argmax())
    margin = float(margin_V[view])
    calibration = concept.calibration
    if calibration is None or calibration.encoder != encoder.fingerprint:
        return Finding(concept, Outcome.REVIEW, margin, None, view)
    probability = sigmoid(calibration.a * margin + calibration.b)
    return Finding(concept, concept.band.outcome(probability), margin, probability, view)


def ensemble(policy: Policy, encoder: Encoder, phrases: Sequence[str]) -> Tensor:
    """One unit row a phrase: the mean of its embeddings over the policy's templates."""
    said = [template.replace("{}", phrase) for phrase in phrases for template in policy.templates]
    rows = encoder.encode_texts(said).view(len(phrases), len(policy.templates), -1).mean(dim=1)
    return finite(unit(rows), "the embedding of a phrase")


def weight(finding: Finding) -> tuple[int, float]:
    """The gravest outcome wins, then the likeliest concept; an uncalibrated one has no likelihood."""
    return SEVERITY[finding.outcome], -1.0 if finding.probability is None else finding.probability


def finite(values: Tensor, what: str) -> Tensor:
    """NaN compares false with every limit, so it is refused before it meets one."""
    if not bool(torch.isfinite(values).all()):
        raise Fault(Cause.GATE_ERROR, f"{what} is not finite; the encoder's weights may be broken")
    return values


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def is_flat(frame: Frame) -> bool:
    pixels = np.asarray(as_image(frame))
    return int(np.ptp(pixels, axis=(0, 1)).max()) < FLAT
