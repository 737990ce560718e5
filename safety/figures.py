"""How well numbers tell two classes apart: curves, areas, calibration, and how sure one can be. Pure numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Truth = NDArray[np.bool_]
BINS = 10
ROUNDS = 400  # resamples of a bootstrap
SURE = 0.95


@dataclass(frozen=True, slots=True)
class Curve:
    """From the highest score down, one entry for each that occurs: how many at or above it are true, and false."""

    scores: Numbers
    true: Numbers
    false: Numbers

    @property
    def recall(self) -> Numbers:
        return _share(self.true)

    @property
    def false_rate(self) -> Numbers:
        return _share(self.false)

    @property
    def precision(self) -> Numbers:
        return self.true / (self.true + self.false)


def _share(counts: Numbers) -> Numbers:
    shares: Numbers = counts / counts[-1]
    return shares


def curve(scores: Numbers, truth: Truth) -> Curve:
    """Needs both classes."""
    order = np.argsort(-scores, kind="stable")
    ordered, there = scores[order], truth[order]
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)  # equal scores fall together
    true = np.cumsum(there)[last].astype(np.float64)
    return Curve(ordered[last], true, last + 1 - true)


def auc(found: Curve) -> float:
    """The area under the receiver's curve: how often a true one scores above a false one."""
    return float(np.trapezoid(np.append(0.0, found.recall), np.append(0.0, found.false_rate)))


def average_precision(found: Curve) -> float:
    return float((np.diff(np.append(0.0, found.recall)) * found.precision).sum())


def recall_at(found: Curve, false_rate: float) -> float:
    """The most that is found while no more than this share of the false is."""
    within = found.recall[found.false_rate <= false_rate]
    return float(within[-1]) if len(within) else 0.0


@dataclass(frozen=True, slots=True)
class Bin:
    count: int
    said: float  # the mean probability
    was: float  # the share that was true


def reliability(odds: Numbers, truth: Truth) -> list[Bin]:
    """By tenths of the probability; empty ones are left out."""
    tenth = np.minimum((odds * BINS).astype(int), BINS - 1)
    held = [tenth == i for i in range(BINS)]
    return [Bin(int(one.sum()), float(odds[one].mean()), float(truth[one].mean())) for one in held if one.any()]


def calibration_error(odds: Numbers, truth: Truth) -> float:
    """By how much the probability is off, on average over the pictures (ECE)."""
    return sum(one.count * abs(one.said - one.was) for one in reliability(odds, truth)) / len(odds)


def interval(
    figure: Callable[[Numbers, Truth], float], scores: Numbers, truth: Truth, seed: int = 0
) -> tuple[float, float]:
    """A figure's bootstrap interval, 95%: pictures are drawn anew from each class."""
    rng = np.random.default_rng(seed)
    classes = [np.flatnonzero(truth), np.flatnonzero(~truth)]
    drawn = []
    for _ in range(ROUNDS):
        some = np.concatenate([rng.choice(one, len(one)) for one in classes])
        drawn.append(figure(scores[some], truth[some]))
    low, high = np.quantile(drawn, [(1 - SURE) / 2, (1 + SURE) / 2])
    return float(low), float(high)


def most(hits: int, of: int, confidence: float) -> float:
    """The exact (Clopper-Pearson) one-sided upper bound of a share of which `hits` were seen among `of`."""
    if hits >= of:
        return 1.0
    low, high = hits / of, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if at_most(hits, of, middle) > 1 - confidence else (low, middle)
    return high


def least(hits: int, of: int, confidence: float) -> float:
    return 1 - most(of - hits, of, confidence)


def at_most(hits: int, of: int, share: float) -> float:
    """The probability of that many hits or fewer, where each is as likely as `share`."""
    k, factorials = np.arange(hits + 1), log_factorials(1 << of.bit_length())
    logs = factorials[of] - factorials[k] - factorials[of - k] + k * math.log(share) + (of - k) * math.log1p(-share)
    return float(np.exp(logs).sum())


@lru_cache(maxsize=8)
def log_factorials(most_of: int) -> Numbers:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, most_of + 1)))])
