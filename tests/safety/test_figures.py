"""Figures against their definitions, written out slowly."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from safety import figures
from safety.figures import Numbers, Truth

labelled = st.lists(st.tuples(st.integers(0, 8).map(lambda n: n / 8), st.booleans()), min_size=2, max_size=40)


def both(pairs: list[tuple[float, bool]]) -> tuple[Numbers, Truth]:
    scores, truth = np.array([score for score, _ in pairs]), np.array([there for _, there in pairs])
    assume(truth.any() and not truth.all())
    return scores, truth


@given(labelled)
def test_the_area_is_how_often_a_true_one_scores_above_a_false_one(pairs: list[tuple[float, bool]]) -> None:
    scores, truth = both(pairs)
    wins = [float(a > b) + float(a == b) / 2 for a in scores[truth] for b in scores[~truth]]
    assert figures.auc(figures.curve(scores, truth)) == pytest.approx(sum(wins) / len(wins))


@given(labelled)
def test_recall_at_a_false_rate_is_the_best_of_all_limits(pairs: list[tuple[float, bool]]) -> None:
    scores, truth = both(pairs)
    kept = [(scores[truth] >= t).mean() for t in {*scores, 2.0} if (scores[~truth] >= t).mean() <= 0.25]
    assert figures.recall_at(figures.curve(scores, truth), 0.25) == pytest.approx(max(kept))


@given(labelled)
def test_precision_is_averaged_over_what_is_found(pairs: list[tuple[float, bool]]) -> None:
    scores, truth = both(pairs)
    total, before = 0.0, 0.0
    for t in sorted(set(scores), reverse=True):
        found = (scores[truth] >= t).mean()
        total += (found - before) * truth[scores >= t].mean()
        before = found
    assert figures.average_precision(figures.curve(scores, truth)) == pytest.approx(total)


def test_calibration_error_is_what_the_probabilities_are_off_by() -> None:
    odds, truth = np.array([0.9] * 10 + [0.1] * 10), np.array([True] * 6 + [False] * 4 + [True] * 1 + [False] * 9)
    assert figures.calibration_error(odds, truth) == pytest.approx((0.3 + 0) / 2)
    assert [one.count for one in figures.reliability(odds, truth)] == [10, 10]
    assert figures.reliability(np.array([1.0]), np.array([True])) == [figures.Bin(1, 1.0, 1.0)]


@pytest.mark.parametrize(
    ("hits", "of", "confidence", "bound"),
    [
        (0, 299, 0.95, 0.009969),  # the rule of three, exactly
        (0, 10, 0.95, 0.258866),
        (10, 10, 0.95, 1.0),
        (1, 10, 0.975, 0.445016),  # the two-sided interval of 1 in 10 at 95%
        (50, 100, 0.975, 0.601679),
    ],
)
def test_bounds_are_those_of_clopper_and_pearson(hits: int, of: int, confidence: float, bound: float) -> None:
    assert figures.most(hits, of, confidence) == pytest.approx(bound, abs=2e-6)
    assert figures.least(of - hits, of, confidence) == pytest.approx(1 - bound, abs=2e-6)


def test_a_bootstrap_interval_holds_the_figure_and_narrows_with_more_pictures() -> None:
    rng = np.random.default_rng(3)
    widths = []
    for count in (100, 2000):
        truth = rng.random(count) < 0.5
        scores = rng.normal(0, 1, count) + truth
        found = figures.auc(figures.curve(scores, truth))
        low, high = figures.interval(lambda s, t: figures.auc(figures.curve(s, t)), scores, truth)
        assert low < found < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 3
