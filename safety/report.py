"""An evaluation as one page that stands alone: its curves are drawn here, the rest is in report.html."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

SIDE = 220  # of a chart, in pixels
LEAST = 0.001  # where the axis of false positives begins: it is logarithmic
NAMES = {
    "auc": "Area under ROC",
    "average_precision": "Average precision",
    "recall_at_1_percent_false": "Recall at 1% false positives",
    "calibration_error": "Calibration error",
    "recall_at_t_low": "Caught (review or block)",
    "false_at_t_low": "Caught wrongly",
    "recall_at_t_high": "Blocked",
    "false_at_t_high": "Blocked wrongly",
}


def html(report: dict[str, Any]) -> str:
    here = FileSystemLoader(Path(__file__).parent)
    pages = Environment(loader=here, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pages.filters |= {"digits": digits, "count": lambda value: f"{value:,}"}
    charts = {"receiver": receiver, "precision": precision, "bins": bins}
    return pages.get_template("report.html").render(**report, **charts, names=NAMES, side=SIDE)


def digits(value: float) -> str:
    """Three digits behind the point, and one more where a value is almost one: it is never rounded to that."""
    return f"{value:.3f}" if value < 0.9995 or value == 1 else f"{min(value, 0.9999):.4f}"


def receiver(points: Sequence[Sequence[float]]) -> str:
    """A stepped line: false positives along, recall up."""
    steps = []
    for (_, found), (false, further) in pairwise(points):
        steps += [(along(false), found), (along(false), further)]
    return line([(0.0, points[0][1]), *steps, (1.0, points[-1][1])])


def along(false: float) -> float:
    return 1 - math.log10(max(false, LEAST)) / math.log10(LEAST)


def precision(points: Sequence[Sequence[float]]) -> str:
    """Recall along, precision up."""
    return line([(0.0, points[0][1]), *((found, kept) for found, kept in points)])


def line(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{SIDE * x:.1f},{SIDE * (1 - y):.1f}" for x, y in points)


def bins(found: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """A dot for each tenth: what was said along, what was true up; its area as many as there are."""
    most = max(one["count"] for one in found)
    return [
        {"x": SIDE * one["said"], "y": SIDE * (1 - one["was"]), "r": 3 + 7 * math.sqrt(one["count"] / most), **one}
        for one in found
    ]
