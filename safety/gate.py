"""The gate: one verdict for each prompt and each frame under one policy, or a fault. It fails closed.

Shapes: V views of a frame, D the embedding.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar, cast

import torch

from farm.errors import FarmError, Fault
from farm.job import Cause
from farm.ports import Frame, Outcome, Rules, Stage, Verdict
from safety.classifier import ImageClassifier, embeddings, open_classifier
from safety.clauses import Classifier
from safety.clip import Encoder, as_image, load_encoder
from safety.hashes import pdq
from safety.lists import listed
from safety.policy import Policy, load, parse
from safety.prompt import judge_prompt
from safety.scoring import Measure, Stored, measure_of, rescored
from safety.shadow import Shadow

FLAT = 8  # a picture whose channels vary by less shows nothing to judge
FLAT_WORDS = "The picture is one flat colour, which the filter cannot judge, so a person looks at it."

T = TypeVar("T")


class ClipGate:
    """Implements farm.ports.Gate. The encoder is opened at the first frame, and again until that works."""

    def __init__(self, policy: Policy, open_encoder: Callable[[], Encoder]) -> None:
        self.policy, self.rules = policy, Rules(policy.document)
        self.shadow = Shadow(self.rules)
        self._open = open_encoder
        self._encoder: Encoder | None = None
        self._measure: Measure | None = None
        self._classifier: tuple[Classifier, ImageClassifier] | None = None
        self._lock = threading.Lock()

    def use(self, rules: Rules) -> None:
        self.policy, self.rules, self.shadow = parse(rules.policy), rules, Shadow(rules)

    def judge_prompts(self, prompts: Sequence[str]) -> list[Verdict | Fault]:
        judged = [guarded(partial(judge_prompt, self.policy, prompt), "prompt") for prompt in prompts]
        return self.shadow.prompts(judged, prompts)

    def judge_frames(self, frames: Sequence[Frame], stage: Stage) -> list[Verdict | Fault]:
        """Together if that works; else one by one, so that a bad frame spoils only its own verdict."""
        try:
            encoder = self.encoder()
        except Fault as fault:
            return [fault for _ in frames]
        measure = guarded(partial(self.measure, encoder), "frames")
        if isinstance(measure, Fault):
            return [measure for _ in frames]
        together = guarded(partial(self.judge, encoder, measure, frames, stage), "frames")
        if not isinstance(together, Fault):
            return together
        alone = [guarded(partial(self.judge, encoder, measure, [frame], stage), "frame") for frame in frames]
        return [found if isinstance(found, Fault) else found[0] for found in alone]

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

    def measure(self, encoder: Encoder) -> Measure:
        if self._measure is None or self._measure.policy != self.policy:
            self._measure = measure_of(self.policy, encoder)
        return self._measure

    def classifier(self, policy: Policy, encoder: Encoder) -> ImageClassifier | None:
        """The one that the policy names, opened once."""
        if policy.classifier is None:
            return None
        if self._classifier is None or self._classifier[0] != policy.classifier:
            self._classifier = policy.classifier, open_classifier(policy.classifier, encoder.device)
        return self._classifier[1]

    def judge(self, encoder: Encoder, measure: Measure, frames: Sequence[Frame], stage: Stage) -> list[Verdict | Fault]:
        made = embeddings(encoder, self.classifier(measure.policy, encoder), frames)
        stored = [
            Stored(stage, frame.sha256, frame.width, frame.height, measure.fingerprint, embedding)
            for frame, embedding in zip(frames, made, strict=True)
        ]
        pairs = zip(frames, rescored(measure, stored), strict=True)
        judged = [
            found if isinstance(found, Fault) else self.known(measure.policy, frame, found) for frame, found in pairs
        ]
        if stage is Stage.PREVIEW:  # nothing is learnt from these
            return judged
        return self.shadow.pictures(judged, encoder, stored, frames, self.known)

    def known(self, policy: Policy, frame: Frame, verdict: Verdict) -> Verdict:
        """What the concepts said of it, unless there is nothing to see, or it is on a list."""
        if is_flat(frame):
            verdict = replace(verdict, outcome=Outcome.REVIEW, reason=FLAT_WORDS)
        held = self.rules.held(rule.name for rule in policy.hash_lists)
        return listed(policy, self.rules.lists, replace(verdict, pdq=pdq(frame), lists=held), frame.file_sha256)


def load_gate(encoder: str = "", device: str = "cpu") -> ClipGate:
    """The factory: without a name the bundled tiny encoder; device `auto` asks torch. Until it hears the rules, it
    judges by the bundled policy: nothing is published on that one's word in a farm that has another in force."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return ClipGate(load(), lambda: load_encoder(encoder, device))


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


def is_flat(frame: Frame) -> bool:
    bands = cast("tuple[tuple[int, int], ...]", as_image(frame).getextrema())
    return max(high - low for low, high in bands) < FLAT
