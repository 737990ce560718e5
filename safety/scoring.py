"""From stored embeddings to verdicts, by a policy and its texts alone: shared by gate, rescan and evaluation.

A picture is judged by its embedding in half precision, as it is stored: judged again, it gets the same answer.
Shapes: N views of all pictures, P pictures, D the embedding, T texts, S scales.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from farm.errors import Fault
from farm.job import Cause
from farm.ports import Outcome, Stage, Verdict
from safety.clauses import Calibration, Concept, Head, Label
from safety.clip import views
from safety.files import bytes_hash
from safety.heads import load_head
from safety.policy import Policy, shown

if TYPE_CHECKING:
    from torch import Tensor

Rows = NDArray[np.float32]
Numbers = NDArray[np.float64]
OUTCOMES = (Outcome.ALLOW, Outcome.REVIEW, Outcome.BLOCK)
ALLOW, REVIEW, BLOCK = range(3)
UNCALIBRATED_WORDS = "The filter's encoder is not calibrated for {!r} yet, so a person looks at every picture."
AT_ONCE = 4096  # pictures in one matrix product


class Texts(Protocol):
    """What scoring needs of an encoder."""

    fingerprint: str

    def encode_texts(self, phrases: Sequence[str]) -> Tensor: ...


class Kind(StrEnum):
    """By what a concept is scored."""

    PHRASES = "phrases"
    HEAD = "head"
    CLASSIFIER = "classifier"


@dataclass(frozen=True, slots=True)
class Scale:
    """One way to score a concept: the best of its columns, less the best of its contrast's if it has one."""

    concept: Concept
    kind: Kind
    source: str  # the hash that its calibration has to name
    calibration: Calibration | None  # None: there is none for that
    columns: slice
    contrast: slice | None = None
    bias: float = 0.0


@dataclass(frozen=True, slots=True)
class Measure:
    """A policy in one encoder's space. Behind the encoder's numbers stand those of the policy's classifier, if it has
    one: each is picked by a row of its own."""

    policy: Policy
    fingerprint: str  # of all that made an embedding
    texts_TD: Rows
    scales: tuple[Scale, ...]


@dataclass(frozen=True, slots=True)
class Stored:
    """A picture as a verdict keeps it."""

    stage: Stage
    subject: str
    width: int
    height: int
    encoder: str
    embedding: bytes = field(repr=False)  # float16, one row a view


def measure_of(policy: Policy, encoder: Texts) -> Measure:
    """Raises Fault where a text is not finite, or a head is not there."""
    rows: list[Rows] = []
    scales = []

    def placed(more: Rows) -> slice:
        rows.append(more)
        end = sum(map(len, rows))
        return slice(end - len(more), end)

    def scale(kind: Kind, clause: Concept | Head | Label, columns: slice, **more: Any) -> None:
        source = policy.classifier.sha256 if policy.classifier and kind is Kind.CLASSIFIER else encoder.fingerprint
        known = clause.calibration if clause.calibration and clause.calibration.encoder == source else None
        scales.append(Scale(concept, kind, source, known, columns, **more))

    for concept in policy.concepts:
        columns = placed(ensemble(policy, encoder, concept.phrases))
        contrast = placed(ensemble(policy, encoder, concept.contrast))
        scale(Kind.PHRASES, concept, columns, contrast=contrast)
        if concept.head:
            weight_D, bias = load_head(concept.head, rows[0].shape[1])
            scale(Kind.HEAD, concept.head, placed(weight_D[None]), bias=bias)
    texts_TD = np.concatenate(rows)
    count, speaks = len(texts_TD), policy.classifier.speaks if policy.classifier else ()
    for k, label in enumerate(speaks):
        concept = next(one for one in policy.concepts if one.name == label.concept)
        scale(Kind.CLASSIFIER, label, slice(count + k, count + k + 1))
    texts_TD = np.pad(texts_TD, ((0, len(speaks)), (0, len(speaks))))
    texts_TD[count:, texts_TD.shape[1] - len(speaks) :] = np.eye(len(speaks))
    return Measure(policy, fingerprint_of(policy, encoder.fingerprint), texts_TD, tuple(scales))


def fingerprint_of(policy: Policy, encoder: str) -> str:
    """Of the encoder, and of the classifier with its labels."""
    if policy.classifier is None:
        return encoder
    told = [encoder, policy.classifier.sha256, *(one.labels for one in policy.classifier.speaks)]
    return bytes_hash(json.dumps(told).encode())


def ensemble(policy: Policy, encoder: Texts, phrases: Sequence[str]) -> Rows:
    """One unit row a phrase: the mean of its embeddings over the policy's templates."""
    said = [template.replace("{}", phrase) for phrase in phrases for template in policy.templates]
    rows: Rows = encoder.encode_texts(said).numpy().reshape(len(phrases), len(policy.templates), -1).mean(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        rows = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    if not np.isfinite(rows).all():
        raise broken("the embedding of a phrase")
    return rows


def packed(rows_VD: NDArray[np.floating]) -> bytes:
    return rows_VD.astype(np.float16).tobytes()


def margins(measure: Measure, rows_ND: Rows) -> Rows:
    """N x S: how far each view stands out on each scale."""
    score_NT = rows_ND @ measure.texts_TD.T
    columns = []
    for scale in measure.scales:
        column_N = score_NT[:, scale.columns].max(axis=1) + np.float32(scale.bias)
        columns.append(column_N - score_NT[:, scale.contrast].max(axis=1) if scale.contrast else column_N)
    return np.stack(columns, axis=1)


def best_margins(measure: Measure, stored: Sequence[Stored]) -> Rows:
    """P x S: each picture's best view on each scale. Raises the first fault there is."""
    found = []
    for start in range(0, len(stored), AT_ONCE):
        rows = [_rows(measure, one) for one in stored[start : start + AT_ONCE]]
        if fault := next((one for one in rows if isinstance(one, Fault)), None):
            raise fault
        _, _, best_PS = _best(measure, rows)  # type: ignore[arg-type]
        found.append(best_PS)
    best = np.concatenate(found)
    if not np.isfinite(best).all():
        raise broken("the embedding of a picture")
    return best


def _best(measure: Measure, rows: Sequence[NDArray[np.float16]]) -> tuple[Rows, NDArray[np.int64], Rows]:
    """The margins of all views, where each picture's begin, and its best."""
    starts = np.cumsum([0, *map(len, rows[:-1])])
    with np.errstate(invalid="ignore", over="ignore"):
        margins_NS = margins(measure, np.concatenate(rows).astype(np.float32))
        return margins_NS, starts, np.maximum.reduceat(margins_NS, starts, axis=0)


def probabilities(measure: Measure, margins_PS: NDArray[np.floating]) -> Numbers:
    """NaN where a scale is not calibrated."""
    nothing = Calibration("0" * 64, float("nan"), float("nan"))
    known = [one.calibration or nothing for one in measure.scales]
    a_S, b_S = np.array([one.a for one in known]), np.array([one.b for one in known])
    return sigmoid(margins_PS.astype(np.float64) * a_S + b_S)


def sigmoid(x: Numbers) -> Numbers:
    return 0.5 * (1 + np.tanh(0.5 * x))


def outcomes(measure: Measure, odds_PS: Numbers) -> NDArray[np.int64]:
    """By each scale's band; what is not calibrated goes to review."""
    bands = [one.concept.band for one in measure.scales]
    low_S = np.array([band.t_low for band in bands])
    high_S = np.array([np.inf if band.t_high is None else band.t_high for band in bands])
    judged = np.where(odds_PS >= high_S, BLOCK, np.where(odds_PS >= low_S, REVIEW, ALLOW))
    return np.where(np.isnan(odds_PS), REVIEW, judged)


def rescored(measure: Measure, stored: Sequence[Stored]) -> list[Verdict | Fault]:
    """One for each, in order; thousands go through one matrix product. A fault is that of its picture alone."""
    answers: list[Verdict | Fault] = []
    for start in range(0, len(stored), AT_ONCE):
        some = stored[start : start + AT_ONCE]
        rows = [_rows(measure, one) for one in some]
        sound = [i for i, found in enumerate(rows) if not isinstance(found, Fault)]
        judged = iter(_judged(measure, [some[i] for i in sound], [rows[i] for i in sound]))  # type: ignore[misc]
        answers += [found if isinstance(found, Fault) else next(judged) for found in rows]
    return answers


def _rows(measure: Measure, stored: Stored) -> NDArray[np.float16] | Fault:
    if stored.stage is Stage.PROMPT:
        return Fault(Cause.GATE_ERROR, "a frame is judged as input, frame or preview, not as prompt")
    if stored.encoder != measure.fingerprint:
        fix = "with that in FARM_ENCODER `farm policy rescan` judges it"
        return Fault(Cause.GATE_ERROR, f"the embedding is of another encoder ({stored.encoder[:12]}): {fix}")
    count, dim = len(view_names(stored.width, stored.height)), measure.texts_TD.shape[1]
    if len(stored.embedding) != count * dim * 2:
        what = f"{len(stored.embedding)} bytes of embedding are not {count} views of {dim}"
        return Fault(Cause.GATE_ERROR, what)
    return np.frombuffer(stored.embedding, np.float16).reshape(count, dim)


def _judged(
    measure: Measure, stored: Sequence[Stored], rows: Sequence[NDArray[np.float16]]
) -> Iterator[Verdict | Fault]:
    if not stored:
        return
    margins_NS, starts, best_PS = _best(measure, rows)
    odds_PS = probabilities(measure, best_PS)
    outcome_PS = outcomes(measure, odds_PS)
    winner_P = _gravest(measure, [one.stage for one in stored], outcome_PS, odds_PS)
    finite_P = np.isfinite(best_PS.sum(axis=1))
    for p, one in enumerate(stored):
        if not finite_P[p]:
            yield broken("the embedding of the picture")
            continue
        s = int(winner_P[p])
        view = int(margins_NS[starts[p] : starts[p] + len(rows[p]), s].argmax())
        odds = None if np.isnan(odds_PS[p, s]) else float(odds_PS[p, s])
        yield _verdict(measure, one, measure.scales[s], OUTCOMES[outcome_PS[p, s]], float(best_PS[p, s]), odds, view)


def _gravest(
    measure: Measure, stages: Sequence[Stage], outcome_PS: NDArray[np.int64], odds_PS: Numbers
) -> NDArray[np.int64]:
    """The gravest outcome wins, then the likeliest concept; an uncalibrated one has no likelihood."""
    weight_PS = 3 * outcome_PS + np.nan_to_num(odds_PS, nan=-1.0)
    for stage in set(stages):
        there_P = np.array([one is stage for one in stages])
        silent_S = np.array([shown(stage) not in one.concept.applies for one in measure.scales])
        weight_PS[np.ix_(there_P, silent_S)] = -np.inf
    winner_P: NDArray[np.int64] = weight_PS.argmax(axis=1)
    return winner_P


def _verdict(
    measure: Measure, stored: Stored, scale: Scale, outcome: Outcome, margin: float, odds: float | None, view: int
) -> Verdict:
    words = scale.concept.words if outcome is not Outcome.ALLOW else ""
    return Verdict(
        stored.stage,
        stored.subject,
        outcome,
        measure.policy.hash,
        measure.fingerprint,
        concept=scale.concept.name,
        margin=margin,
        probability=odds,
        view=view_names(stored.width, stored.height)[view],
        reason=UNCALIBRATED_WORDS.format(scale.concept.name) if odds is None else words,
        embedding=stored.embedding,
    )


@lru_cache(maxsize=1024)
def view_names(width: int, height: int) -> tuple[str, ...]:
    return tuple(view.name for view in views(width, height))


def broken(what: str) -> Fault:
    """NaN compares false with every limit, so it is refused before it meets one."""
    return Fault(Cause.GATE_ERROR, f"{what} is not finite; the encoder's weights may be broken")
