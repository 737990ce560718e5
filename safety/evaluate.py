"""What a policy does with labelled pictures: how well each concept stands apart, and what its limits make of that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farm.ports import Outcome, Verdict
from safety import figures
from safety.clauses import Band, Concept
from safety.figures import Numbers, Truth
from safety.labelled import Seen
from safety.prompt import judge_prompt
from safety.scoring import OUTCOMES, Measure, best_margins, outcomes, probabilities, rescored

FALSE_RATE = 0.01
POINTS = 200  # of a curve, as drawn
ALL = ""  # the source that stands for all of them
Report = dict[str, Any]


def evaluate(measure: Measure, seen: Sequence[Seen]) -> Report:
    """The figures of every concept and source. Pictures of which nobody knows whether they show it are left out."""
    margins_PS = best_margins(measure, [one.stored for one in seen]).astype(np.float64)
    judged = outcomes_of(measure, seen)
    return {
        "policy": {"name": measure.policy.name, "hash": measure.policy.hash},
        "encoder": measure.fingerprint,
        "pictures": len(seen),
        "rounds": figures.ROUNDS,
        "concepts": [_of_concept(measure, concept, seen, margins_PS) for concept in measure.policy.concepts],
        "per_1000": per_1000(judged),
        "outcomes": _outcomes(seen, judged),
        "prompts": _prompts(measure, seen),
    }


def _of_concept(measure: Measure, concept: Concept, seen: Sequence[Seen], margins_PS: Numbers) -> Report:
    columns = [s for s, scale in enumerate(measure.scales) if scale.concept is concept]
    odds_PS = probabilities(measure, margins_PS)
    odds_P = odds_PS[:, columns].max(axis=1)  # NaN where one of them is not calibrated
    calibrated = not np.isnan(odds_P).any()
    scores = odds_P if calibrated else margins_PS[:, columns[0]]
    known = np.array([concept.name not in one.row.unknown for one in seen])
    truth = np.array([concept.name in one.row.shows for one in seen])
    sources = []
    for source in [ALL, *sorted({one.row.source for one in seen} - {ALL})]:
        here = known & np.array([source in (ALL, one.row.source) for one in seen])
        sources.append({"source": source, **_figures(scores[here], truth[here], calibrated, concept.band)})
    found: Report = {"concept": concept.name, "calibrated": calibrated, **asdict(concept.band), "sources": sources}
    if truth[known].any() and not truth[known].all():
        found["curves"] = curves(scores[known], truth[known], calibrated)
    band_P = outcomes(measure, odds_PS)[:, columns].max(axis=1)
    return found | {"categories": _categories(seen, odds_P, band_P, known)}


def outcomes_of(measure: Measure, seen: Sequence[Seen]) -> list[Outcome]:
    """As the gate has them: of the picture alone, whatever its prompt."""
    answers = rescored(measure, [one.stored for one in seen])
    judged = [answer for answer in answers if isinstance(answer, Verdict)]  # a fault was raised before
    return [Outcome.REVIEW if one.flat else answer.outcome for one, answer in zip(seen, judged, strict=True)]


def flips(before: Measure, seen_before: Sequence[Seen], after: Measure, seen: Sequence[Seen]) -> Report:
    """Which pictures another policy judges otherwise. `seen_before`: the same, as its own classifier looks at them."""
    moves = [
        (one, old, new)
        for one, old, new in zip(seen, outcomes_of(before, seen_before), outcomes_of(after, seen), strict=True)
        if old is not new
    ]
    counts = Counter((old, new) for _, old, new in moves)
    return {
        "against": {"name": before.policy.name, "hash": before.policy.hash},
        "counts": [{"from": old, "to": new, "pictures": count} for (old, new), count in sorted(counts.items())],
        "pictures": [
            {"line": one.row.number, "path": str(one.row.path), "shows": sorted(one.row.shows), "from": old, "to": new}
            for one, old, new in moves
        ],
    }


def _figures(scores: Numbers, truth: Truth, calibrated: bool, band: Band) -> Report:
    """None where a figure needs both classes, or probabilities."""
    found: Report = {"shown": int(truth.sum()), "not_shown": int((~truth).sum())}
    both = 0 < found["shown"] < len(truth)
    named: dict[str, tuple[bool, Callable[[Numbers, Truth], float]]] = {
        "auc": (both, lambda s, t: figures.auc(figures.curve(s, t))),
        "average_precision": (both, lambda s, t: figures.average_precision(figures.curve(s, t))),
        "recall_at_1_percent_false": (both, lambda s, t: figures.recall_at(figures.curve(s, t), FALSE_RATE)),
        "calibration_error": (calibrated and len(truth) > 0, figures.calibration_error),
    }
    for name, (told, figure) in named.items():
        found[name] = with_interval(figure, scores, truth) if told else None
    for name, limit in asdict(band).items():
        if limit is not None:
            caught = scores >= limit
            found[f"recall_at_{name}"] = share(caught[truth]) if calibrated else None
            found[f"false_at_{name}"] = share(caught[~truth]) if calibrated else None
    return found


def share(hits: Truth) -> Report | None:
    """With its exact interval: resamples of a few pictures that are all alike would promise too much."""
    if not len(hits):
        return None
    count, sure = int(hits.sum()), (1 + figures.SURE) / 2
    low, high = figures.least(count, len(hits), sure), figures.most(count, len(hits), sure)
    return {"value": count / len(hits), "low": low, "high": high}


def with_interval(figure: Callable[[Numbers, Truth], float], scores: Numbers, truth: Truth) -> Report:
    low, high = figures.interval(figure, scores, truth)
    return {"value": figure(scores, truth), "low": low, "high": high}


def curves(scores: Numbers, truth: Truth, calibrated: bool) -> Report:
    found = figures.curve(scores, truth)
    kept = np.unique(np.linspace(0, len(found.scores) - 1, POINTS).astype(int))
    receiver = zip(found.false_rate[kept].tolist(), found.recall[kept].tolist(), strict=True)
    precision = zip(found.recall[kept].tolist(), found.precision[kept].tolist(), strict=True)
    bins = [asdict(one) for one in figures.reliability(scores, truth)] if calibrated else []
    return {"roc": [[0.0, 0.0], *map(list, receiver)], "pr": [*map(list, precision)], "reliability": bins}


def per_1000(judged: Sequence[Outcome]) -> Report:
    """What comes of 1,000 pictures such as these."""
    shares = {outcome: share(np.array([one is outcome for one in judged])) or {} for outcome in Outcome}
    return {outcome.value: {key: 1000 * value for key, value in one.items()} for outcome, one in shares.items()}


def _categories(seen: Sequence[Seen], odds_P: Numbers, band_P: NDArray[np.int64], known: Truth) -> list[Report]:
    """By this concept alone."""
    return [
        {
            "category": category,
            "pictures": len(held),
            **{outcome.value: int((band_P[held] == i).sum()) for i, outcome in enumerate(OUTCOMES)},
            "median": None if np.isnan(odds_P[held]).any() else float(np.median(odds_P[held])),
        }
        for category, held in _grouped([one.row.category for one in seen], known)
    ]


def _grouped(names: Sequence[str], known: Truth) -> Iterator[tuple[str, list[int]]]:
    for name in sorted(set(names)):
        held = [i for i, one in enumerate(names) if one == name and known[i]]
        if held:
            yield name, held


def _outcomes(seen: Sequence[Seen], judged: Sequence[Outcome]) -> list[Report]:
    """By what the pictures show."""
    counts = Counter(zip((";".join(sorted(one.row.shows)) or "none" for one in seen), judged, strict=True))
    return [
        {"shows": shows, **{outcome.value: counts[shows, outcome] for outcome in Outcome}}
        for shows in sorted({shows for shows, _ in counts})
    ]


def _prompts(measure: Measure, seen: Sequence[Seen]) -> dict[str, int]:
    """What the rules make of the prompts that the rows give."""
    said = [one.row.prompt for one in seen if one.row.prompt]
    counts = Counter(judge_prompt(measure.policy, prompt).outcome for prompt in said)
    return {outcome.value: counts[outcome] for outcome in Outcome}
