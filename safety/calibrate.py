"""Fits a policy to an encoder on labelled pictures: what a margin means, and where review and block begin.

For each scale probability = sigmoid(a * margin + b) by logistic regression, with Platt's targets in place of 0 and 1,
so that classes that lie apart do not drive it to certainty. A concept's t_low is the highest limit under which at most
`miss` of what shows it lies, with `confidence`: as many pictures are below it as the exact (Clopper-Pearson) upper
bound allows. It is never above a half. t_high is the lowest limit at and above which at least `precision` of the
labelled pictures show it, with the same confidence, and never below `precision` itself: no picture is blocked that is
less likely to show it. It is only set where the policy blocks at all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safety import figures
from safety.clauses import Calibration, Concept
from safety.figures import Numbers, Truth
from safety.policy import in_order
from safety.scoring import Kind, Measure, sigmoid

HALF = 0.5
FINE = 10_000  # limits are told to four digits
FEW = 20  # pictures of a class, for a slope


@dataclass(frozen=True, slots=True)
class Budget:
    miss: float
    confidence: float
    precision: float


@dataclass(frozen=True, slots=True)
class Fitted:
    """`why` says why there is no calibration, or no limit."""

    concept: str
    shown: int
    not_shown: int
    calibrations: Mapping[Kind, Calibration] = field(default_factory=dict)
    t_low: float | None = None
    t_high: float | None = None
    missed: int = 0  # pictures below t_low
    at_most: float = 1.0  # the upper bound of that share
    why: str = ""


def fit_concept(
    measure: Measure, concept: Concept, margins_PS: NDArray[np.floating], truth: Truth, budget: Budget
) -> Fitted:
    """`margins_PS`: the best view's, of every scale of the measure."""
    counts = int(truth.sum()), int((~truth).sum())
    if min(counts) < FEW:
        return Fitted(concept.name, *counts, why=f"{FEW} pictures that show it and {FEW} that do not are the least")
    known: dict[Kind, Calibration] = {}
    odds = np.zeros(len(truth))
    for s, scale in enumerate(measure.scales):
        if scale.concept is concept:
            found = fit(margins_PS[:, s].astype(np.float64), truth)
            if found is None:
                why = f"the score of its {scale.kind} is no higher for pictures that show it"
                return Fitted(concept.name, *counts, why=why)
            known[scale.kind] = Calibration(scale.source, *found)
            odds = np.maximum(odds, sigmoid(found[0] * margins_PS[:, s].astype(np.float64) + found[1]))
    allowed = most_missed(counts[0], budget)
    if allowed is None:
        needed = math.ceil(math.log(1 - budget.confidence) / math.log(1 - budget.miss))
        return Fitted(concept.name, *counts, why=f"{needed} pictures that show it are needed for that miss budget")
    t_low = low_limit(odds, truth, allowed)
    t_high = high_limit(odds, truth, budget) if concept.band.t_high is not None else None
    missed = int((odds[truth] < t_low).sum())
    bound = figures.most(missed, counts[0], budget.confidence)
    return Fitted(concept.name, *counts, known, t_low, t_high, missed, bound)


def fit(margins: Numbers, truth: Truth) -> tuple[float, float] | None:
    """Newton's method on a convex loss. None where a higher margin does not make it likelier, beyond doubt."""
    low, _ = figures.interval(lambda scores, there: figures.auc(figures.curve(scores, there)), margins, truth)
    if low <= HALF:
        return None
    there, rest = int(truth.sum()), int((~truth).sum())
    target = np.where(truth, (there + 1) / (there + 2), 1 / (rest + 2))
    inputs = np.stack([margins, np.ones_like(margins)], axis=1)
    ab = np.array([0.0, math.log(there / rest)])
    for _ in range(200):
        odds = sigmoid(inputs @ ab)
        gradient = inputs.T @ (odds - target)
        curvature = (inputs * (odds * (1 - odds))[:, None]).T @ inputs + 1e-12 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        while loss(inputs, target, ab - step) > loss(inputs, target, ab):
            step = step / 2
            if np.abs(step).max() < 1e-12:
                break
        ab = ab - step
        if np.abs(step).max() < 1e-9 * max(1.0, np.abs(ab).max()):
            break
    a, b = (float(f"{value:.6g}") for value in ab)
    return (a, b) if a > 0 else None


def loss(inputs: Numbers, target: Numbers, ab: Numbers) -> float:
    logits = inputs @ ab
    return float(np.sum(np.logaddexp(0, logits) - target * logits))


def most_missed(shown: int, budget: Budget) -> int | None:
    """How many of the pictures that show it may lie below the limit; None where even none is too many."""
    allowed = None
    for missed in range(shown):
        if figures.at_most(missed, shown, budget.miss) > 1 - budget.confidence:
            break
        allowed = missed
    return allowed


def low_limit(odds: Numbers, truth: Truth, allowed: int) -> float:
    """The picture after those that may be missed is just caught."""
    return math.floor(min(float(np.sort(odds[truth])[allowed]), HALF) * FINE) / FINE


def high_limit(odds: Numbers, truth: Truth, budget: Budget) -> float | None:
    """None where no limit keeps the promise: a person looks at everything. Never below t_low, as precision is above a
    half."""
    found = figures.curve(odds, truth)
    kept = [
        score
        for score, true, false in zip(found.scores, found.true, found.false, strict=True)
        if score >= budget.precision
        and figures.at_most(int(false), int(true + false), 1 - budget.precision) <= 1 - budget.confidence
    ]
    return math.ceil(kept[-1] * FINE) / FINE if kept else None


def applied(document: str, fitted: Sequence[Fitted]) -> dict[str, Any]:
    """The policy's document with what was found. A concept that could not be fitted loses the calibration it had."""
    changed: dict[str, Any] = json.loads(document)
    by_name = {one.concept: one for one in fitted}
    for part in changed["concepts"]:
        one = by_name[part["name"]]
        speaks = changed.get("classifier", {}).get("speaks", ())
        label: dict[str, Any] = next((label for label in speaks if label["concept"] == part["name"]), {})
        for kind, place in ((Kind.PHRASES, part), (Kind.HEAD, part.get("head", {})), (Kind.CLASSIFIER, label)):
            place.pop("calibration", None)
            if found := one.calibrations.get(kind):
                place["calibration"] = asdict(found)
        if one.t_low is not None:
            part["band"] = {"t_low": one.t_low} | ({"t_high": one.t_high} if one.t_high is not None else {})
    ordered: dict[str, Any] = in_order(changed)
    return ordered
