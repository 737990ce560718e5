"""Calibration on made margins, and `farm policy calibrate` and `eval` on drawn pictures."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from farm import pictures
from farm.cli import _run
from farm.errors import BadInput
from farm.ports import Frame
from safety import figures, labelled
from safety.calibrate import Budget, Fitted, fit, fit_concept, most_missed
from safety.clauses import Band
from safety.gate import ClipGate
from safety.policy import DEMO, load, parse
from safety.scoring import Kind, Measure, Scale, sigmoid
from training import clip_set

BUDGET = Budget(miss=0.01, confidence=0.95, precision=0.95)
Capture = pytest.CaptureFixture[str]


def made(count: int, a: float, b: float, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Margins whose truth follows a and b."""
    rng = np.random.default_rng(seed)
    margins = rng.uniform(-0.6, 0.6, count)
    return margins, rng.random(count) < sigmoid(a * margins + b)


def fitted(margins: np.ndarray, truth: np.ndarray, budget: Budget = BUDGET, t_high: float | None = 0.8) -> Fitted:
    concept = replace(load().concepts[0], band=Band(0.2, t_high))
    scale = Scale(concept, Kind.PHRASES, "e" * 64, None, slice(0, 1), slice(1, 2))
    measure = Measure(load(), "e" * 64, np.zeros((2, 4), np.float32), (scale,))
    return fit_concept(measure, concept, margins[:, None], truth, budget)


def test_the_slope_and_the_offset_are_found_again() -> None:
    found = fit(*made(10_000, 12.0, -2.0))
    assert found is not None
    assert found == pytest.approx((12.0, -2.0), rel=0.1)


def test_classes_that_lie_apart_are_no_certainty() -> None:
    margins = np.concatenate([np.linspace(0.3, 0.5, 100), np.linspace(-0.5, -0.3, 100)])
    found = fit(margins, margins > 0)
    assert found is not None
    odds = sigmoid(found[0] * margins + found[1])
    assert 0.9 < odds[:100].min() < odds.max() < 0.9999
    assert figures.calibration_error(odds, margins > 0) < 0.02


def test_a_score_that_says_nothing_or_the_contrary_is_not_fitted() -> None:
    margins, truth = made(400, 0.0, 0.0)
    assert fit(margins, truth) is None
    margins, truth = made(400, 12.0, 0.0)
    assert fit(-margins, truth) is None
    told = fitted(-margins, truth)
    assert "no higher for pictures that show it" in told.why
    assert (dict(told.calibrations), told.t_low) == ({}, None)


def test_too_few_pictures_are_said_to_be() -> None:
    margins, truth = made(60, 12.0, -3.0)
    assert "are the least" in fitted(margins[truth][:5], truth[truth][:5]).why
    assert "299 pictures" in fitted(margins, truth).why
    assert fitted(margins, truth, replace(BUDGET, miss=0.3)).why == ""


def test_as_many_are_missed_as_the_bound_allows_and_no_more() -> None:
    assert most_missed(298, BUDGET) is None
    assert most_missed(299, BUDGET) == 0
    allowed = most_missed(1000, BUDGET)
    assert allowed is not None
    assert figures.most(allowed, 1000, 0.95) <= 0.01 < figures.most(allowed + 1, 1000, 0.95)


def test_the_limits_keep_what_was_promised_on_pictures_never_seen() -> None:
    """By its confidence the miss budget is overrun once in 20 repetitions; in 15, four times would be a rare thing."""
    overrun = 0
    for seed in range(15):
        found = fitted(*made(3000, 14.0, -1.0, seed))
        assert found.t_low is not None
        assert found.t_high is not None
        assert found.t_low <= 0.5 < BUDGET.precision <= found.t_high
        margins, truth = made(20_000, 14.0, -1.0, seed + 1000)
        (known,) = found.calibrations.values()
        odds = sigmoid(known.a * margins + known.b)
        overrun += (odds[truth] < found.t_low).mean() > BUDGET.miss
        assert truth[odds >= found.t_high].mean() > BUDGET.precision
    assert overrun <= 3


def test_a_concept_that_never_blocks_is_not_made_to() -> None:
    assert fitted(*made(3000, 14.0, -1.0), t_high=None).t_high is None


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_set.write(tmp_path_factory.mktemp("drawn"), 160, seed=11)


def test_calibrate_writes_a_policy_that_eval_measures(drawn: Path, tmp_path: Path, capsys: Capture) -> None:
    document = yaml.safe_load(DEMO.read_text())
    for concept in document["concepts"]:
        del concept["calibration"]
    (tmp_path / "bare.yaml").write_text(yaml.safe_dump(document))
    bare, new = str(tmp_path / "bare.yaml"), tmp_path / "new.yaml"
    budget = ["--miss", "0.15", "--precision", "0.8"]
    asked = ["policy", "calibrate", bare, "--csv", str(drawn), *budget, "--out", str(new), "--json"]
    assert _run(asked) == 0
    told = json.loads(capsys.readouterr().out)
    policy = load(new)
    assert told["policy"] == policy.hash
    assert policy.hash == parse(policy.document).hash
    for concept, said in zip(policy.concepts, told["concepts"], strict=True):
        assert concept.calibration is not None
        assert (concept.calibration.a, concept.band.t_low) == (said["a"], said["t_low"])
        assert concept.calibration.encoder == told["encoder"]
    assert policy.concepts[1].band.t_high is None
    assert _run(asked) == 2
    assert "is there already" in capsys.readouterr().err

    page = tmp_path / "report.html"
    against = ["--against", bare, "--html", str(page), "--json"]
    assert _run(["policy", "eval", str(new), "--csv", str(drawn), *against]) == 0
    report = json.loads(capsys.readouterr().out)
    triangle, ring = report["concepts"]
    everything = triangle["sources"][0]
    assert everything["shown"] + everything["not_shown"] == report["pictures"] == 160
    assert everything["auc"]["value"] > 0.97
    assert everything["auc"]["low"] <= everything["auc"]["value"] <= everything["auc"]["high"]
    assert everything["recall_at_t_low"]["value"] > 0.9
    assert sum(one["shown"] for one in triangle["sources"][1:]) == everything["shown"]
    assert ring["sources"][0].get("recall_at_t_high") is None
    assert sum(one["value"] for one in report["per_1000"].values()) == pytest.approx(1000)
    # Uncalibrated, nothing was allowed or blocked; what now is, flips.
    flipped = {(one["from"], one["to"]): one["pictures"] for one in report["flips"]["counts"]}
    assert set(flipped) <= {("review", "allow"), ("review", "block")}
    judged = {name: sum(row[name] for row in report["outcomes"]) for name in ("allow", "block")}
    assert {name: flipped["review", name] for name in judged} == judged
    assert len(report["flips"]["pictures"]) == sum(flipped.values())
    text = page.read_text()
    for word in (policy.hash, told["encoder"], "two shapes", "<polyline", "red-ring", "Against demo"):
        assert word in text
    assert "http" not in text.replace("http-equiv", "")


def test_an_uncalibrated_policy_sends_all_to_review_and_the_report_says_so(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    document = yaml.safe_load(DEMO.read_text())
    del document["concepts"][0]["calibration"]
    (tmp_path / "bare.yaml").write_text(yaml.safe_dump(document))
    rows = rows_of(drawn)[:40]
    few = written(drawn.parent / "few.csv", rows)
    page = tmp_path / "report.html"
    assert _run(["policy", "eval", str(tmp_path / "bare.yaml"), "--csv", str(few), "--html", str(page)]) == 0
    assert "NOT CALIBRATED" in capsys.readouterr().out
    assert "Not calibrated for this encoder" in page.read_text()


def rows_of(drawn: Path) -> list[dict[str, str]]:
    with drawn.open() as file:
        return [dict(row) for row in csv.DictReader(file)]


def written(file: Path, rows: list[dict[str, str]]) -> Path:
    with file.open("w", newline="") as out:
        table = csv.DictWriter(out, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return file


def test_every_bad_row_is_named_before_a_picture_is_opened(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "set.csv").write_text(
        "path,label,source\n"
        "a.png,red-triangle,x\n"
        "b.png,red-triangel,x\n"
        ",none,x\n"
        "c.png,red-ring;none,x\n"
        "d.png,red-ring\n"
        "a.png,none,x\n"
        "e.png,,x\n"
        '"f\n.png",?red-ring;red-ring,x\n'
    )
    assert _run(["policy", "eval", "--csv", str(tmp_path / "set.csv")]) == 2
    said = capsys.readouterr().err
    for line in (
        "line 3: label: no concept 'red-triangel' in the policy (did you mean 'red-triangle'?, or none)",
        "line 4: path: it is empty",
        "line 5: label: 'red-ring;none' contradicts itself",
        "line 6: row: it has not as many fields",
        "line 7: path: the same picture as in line 2",
        "line 8: label: no concept ''",
        "line 10: label: '?red-ring;red-ring' contradicts itself",
        "7 bad rows",
    ):
        assert line in said


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("path\na.png\n", "no column 'label'"),
        ("path,label,sauce\n", "unknown column 'sauce' (did you mean 'source'?)"),
        ("path,label,label\n", "named twice"),
        ("", "no column 'path'"),
        ("path,label\n", "names no pictures"),
        ("path,label\n\xff,none\n", "line 2 of .* is not UTF-8"),
    ],
)
def test_a_file_that_is_no_such_table_is_refused(tmp_path: Path, text: str, told: str, capsys: Capture) -> None:
    (tmp_path / "set.csv").write_bytes(text.encode("latin-1"))
    assert _run(["policy", "eval", "--csv", str(tmp_path / "set.csv")]) == 2
    assert re.search(told if ".*" in told else re.escape(told), capsys.readouterr().err)


def test_pictures_that_do_not_open_are_named_and_left_out(drawn: Path, tmp_path: Path, capsys: Capture) -> None:
    rows = rows_of(drawn)[:6]
    whole = (drawn.parent / rows[0]["path"]).read_bytes()
    for row in rows:
        row["path"] = str(drawn.parent / row["path"])
    for number, (name, data) in enumerate(
        {"cut.png": whole[:200], "text.png": b"no picture", "gone.png": None}.items()
    ):
        rows[number + 1]["path"] = str(tmp_path / name)
        if data is not None:
            (tmp_path / name).write_bytes(data)
    file = written(tmp_path / "set.csv", rows)
    assert _run(["policy", "eval", "--csv", str(file), "--json"]) == 0
    done = capsys.readouterr()
    report = json.loads(done.out)
    assert [one["line"] for one in report["left_out"]] == [3, 4, 5]
    assert report["pictures"] == 3
    for part in ("line 3: path: ", "cut.png", "not a PNG", "No such file", "3 pictures left out of 6"):
        assert part in done.err


def test_however_few_pictures_are_held_at_once_each_is_seen_in_order(
    drawn: Path, gate: ClipGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, bad = labelled.read(drawn, [concept.name for concept in load().concepts])
    assert not bad
    few = [*rows[:3], replace(rows[3], path=drawn.parent / "gone.png"), *rows[4:9]]
    at_once = list(labelled.embedded(few, gate.encoder(), load(), 10**6))
    held = []
    decode = pictures.decode_strangers

    def counted(files: Sequence[bytes], max_pixels: int) -> list[Frame | BadInput]:
        held.append(len(files))
        return decode(files, max_pixels)

    monkeypatch.setattr(labelled, "decode_strangers", counted)
    monkeypatch.setattr("farm.pictures.ENOUGH", 1)
    monkeypatch.setattr(labelled, "AT_ONCE", 4)
    one_by_one = list(labelled.embedded(few, gate.encoder(), load(), 10**6))
    assert [type(one) for one in one_by_one] == [labelled.Seen] * 3 + [labelled.Bad] + [labelled.Seen] * 5
    for one, other in zip(at_once, one_by_one, strict=True):
        if isinstance(one, labelled.Seen) and isinstance(other, labelled.Seen):
            assert (one.row, one.stored.subject, one.flat) == (other.row, other.stored.subject, other.flat)
    assert (max(held), len(held)) == (4, 8)


def test_what_nobody_looked_for_counts_neither_way(drawn: Path, tmp_path: Path, capsys: Capture) -> None:
    rows = rows_of(drawn)[:12]
    for row in rows:
        row["path"] = str(drawn.parent / row["path"])
        row["label"] = "none;?red-ring" if row["label"] == "none" else row["label"]
    file = written(tmp_path / "set.csv", rows)
    unknown = sum("?" in row["label"] for row in rows)
    assert _run(["policy", "eval", "--csv", str(file), "--json"]) == 0
    triangle, ring = (one["sources"][0] for one in json.loads(capsys.readouterr().out)["concepts"])
    assert triangle["shown"] + triangle["not_shown"] == 12
    assert ring["shown"] + ring["not_shown"] == 12 - unknown
    assert unknown > 0
