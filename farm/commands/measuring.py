"""`farm policy calibrate` and `farm policy eval`: a policy against labelled pictures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.commands.output import as_json, clean, columns_of, counted, facts, moment, progress, say, table
from farm.commands.policy import A_POLICY, File, Json, opened
from farm.errors import BadInput

if TYPE_CHECKING:
    from farm.config import Settings
    from safety.clip import Encoder
    from safety.labelled import Bad, Row, Seen
    from safety.policy import Policy

Csv = Annotated[Path, typer.Option("--csv", help="path,label[,category,source,prompt]; label: concepts, or none.")]
SHOWN_BAD = 50


def calibrate(
    file: File,
    csv: Csv,
    out: Annotated[Path, typer.Option(help="The new policy; it must not be there yet.")],
    miss: Annotated[float, typer.Option(min=0, max=1, help="The share of each concept that may pass unseen.")] = 0.01,
    precision: Annotated[float, typer.Option(min=0, max=1, help="The share of the blocked that must show it.")] = 0.95,
    confidence: Annotated[float, typer.Option(min=0, max=1, help="How sure to be of both.")] = 0.95,
    json_: Json = False,
) -> None:
    """Fit a policy to this farm's encoder on labelled pictures, and choose where review and block begin. Exit code 1 if
    a concept could not be fitted: it stays uncalibrated, and everything goes to review."""
    from safety.calibrate import Budget, applied, fit_concept
    from safety.policy import parse
    from safety.scoring import best_margins, measure_of

    if not (0 < miss < 1 and 0.5 < precision < 1 and 0 < confidence < 1):
        raise BadInput("--miss and --confidence lie between 0 and 1, --precision between 0.5 and 1")
    found, settings = opened(file), _settings()
    if out.exists():
        raise BadInput(f"{out} is there already", field="--out", fix="name a new file")
    rows = read(csv, [concept.name for concept in found.concepts])
    encoder = _encoder(settings)
    measure = measure_of(found, encoder)
    seen, _ = see(rows, encoder, found, settings.max_pixels_in)
    margins_PS = best_margins(measure, [one.stored for one in seen])
    budget, fitted = Budget(miss, confidence, precision), []
    for concept in progress(found.concepts, len(found.concepts), "fitting"):
        known = [i for i, one in enumerate(seen) if concept.name not in one.row.unknown]
        truth = _truth([seen[i] for i in known], concept.name)
        fitted.append(fit_concept(measure, concept, margins_PS[known], truth, budget))
    written = _written(applied(found.document, fitted), csv, budget, len(seen))
    calibrated = parse(written)
    out.write_text(written)
    report = [_told(one) for one in fitted]
    if json_:
        as_json({"policy": calibrated.hash, "encoder": encoder.fingerprint, "pictures": len(seen), "concepts": report})
    else:
        table(report, list(report[0]))
        say(f"farm: {out} is written: {calibrated.name} {calibrated.hash}")
    if any(one.why for one in fitted):
        raise typer.Exit(1)


def evaluate(
    csv: Csv,
    file: Annotated[str, typer.Argument(metavar="[POLICY]", help=A_POLICY)] = "",
    against: Annotated[str, typer.Option(help="Another, to say which pictures flip; left out: the one in force.")] = "",
    html: Annotated[Path | None, typer.Option(help="Where to write the report as a page.")] = None,
    json_: Json = False,
) -> None:
    """Say how a policy judges labelled pictures, by concept and source: curves, intervals, what goes to review, and
    what the policy in force, or another, judges otherwise."""
    from safety.evaluate import evaluate as evaluated
    from safety.evaluate import flips
    from safety.scoring import measure_of

    found, settings = opened(file), _settings()
    other = opened(against)
    both = [concept.name for policy in (found, other) for concept in policy.concepts]
    rows = read(csv, list(dict.fromkeys(both)))
    encoder = _encoder(settings)
    measure = measure_of(found, encoder)
    before = measure_of(other, encoder)
    seen, bad = see(rows, encoder, found, settings.max_pixels_in)
    seen_before = seen
    if before.fingerprint != measure.fingerprint:
        seen_before, _ = see([one.row for one in seen], encoder, other, settings.max_pixels_in)
    say("farm: reckoning")
    report: dict[str, Any] = {"set": csv.name, "made_at": moment(time.time())} | evaluated(measure, seen)
    report |= {"flips": flips(before, seen_before, measure, seen), "left_out": [asdict(one) for one in bad]}
    if html:
        from safety import report as page

        html.write_text(page.html(report))
        say(f"farm: {html} is written")
    if json_:
        as_json(report)
    else:
        _print_report(report)


def read(csv: Path, concepts: Sequence[str]) -> list[Row]:
    """All rows, or none of them and what is wrong with each."""
    from safety import labelled

    rows, bad = labelled.read(csv, concepts)
    for one in bad[:SHOWN_BAD]:
        say(f"  line {one.line}: {one.field}: {one.reason}")
    if len(bad) > SHOWN_BAD:
        say(f"  and {len(bad) - SHOWN_BAD:,} more")
    if bad:
        raise BadInput(
            f"{counted(len(bad), 'bad row')} in {csv}", field="--csv", fix="correct or take out what is named"
        )
    if not rows:
        raise BadInput(f"{csv} names no pictures", field="--csv")
    return rows


def see(rows: Sequence[Row], encoder: Encoder, policy: Policy, max_pixels: int) -> tuple[list[Seen], list[Bad]]:
    """What of the pictures can be opened; the others are named."""
    from safety.labelled import Bad, embedded

    seen, bad = [], []
    for one in progress(embedded(rows, encoder, policy, max_pixels), len(rows), "looking at the pictures"):
        if isinstance(one, Bad):
            bad.append(one)
            say(f"  line {one.line}: {one.field}: {one.reason}")
        else:
            seen.append(one)
    if not seen:
        raise BadInput("not one picture could be opened", field="--csv", fix="see what is said of each")
    if bad:
        say(f"farm: {counted(len(bad), 'picture')} left out of {len(rows):,}")
    return seen, bad


def _settings() -> Settings:
    from farm import config

    return config.load()


def _encoder(settings: Settings) -> Encoder:
    from safety.clip import load_encoder

    return load_encoder(settings.encoder)


def _truth(seen: Sequence[Seen], concept: str) -> Any:
    import numpy as np

    return np.array([concept in one.row.shows for one in seen], bool)


def _told(one: Any) -> dict[str, Any]:
    """`one`: what was found of a concept."""
    known = next(iter(one.calibrations.values()), None)
    return {
        "concept": one.concept,
        "shown": one.shown,
        "not shown": one.not_shown,
        "a": known and known.a,
        "b": known and known.b,
        "t_low": one.t_low,
        "t_high": one.t_high,
        "missed": one.missed,
        "missed at most": one.at_most,
        "problem": clean(one.why),
    }


def _print_report(report: dict[str, Any]) -> None:
    facts({name: report[name] for name in ("set", "pictures", "encoder")} | {"policy": report["policy"]["hash"]})
    for concept in report["concepts"]:
        calibrated = "" if concept["calibrated"] else ", NOT CALIBRATED: everything goes to review"
        print(clean(f"\n{concept['concept']}: review from {concept['t_low']}{calibrated}"))
        rows = [{name: _short(value) for name, value in row.items()} for row in concept["sources"]]
        rows[0]["source"] = "all"
        table(rows, columns_of(rows))
    per_1000 = report["per_1000"]
    shares = ", ".join(
        f"{name} {one['value']:.0f} ({one['low']:.0f} to {one['high']:.0f})" for name, one in per_1000.items()
    )
    print(f"\nof 1,000 such pictures: {shares}")
    against = report["flips"]["against"]
    print(clean(f"flips against {against['name']} {against['hash'][:12]}: {len(report['flips']['pictures']):,}"))
    for row in report["flips"]["counts"]:
        print(f"  {row['from']} -> {row['to']}: {row['pictures']:,}")


def _short(value: Any) -> Any:
    return f"{value['value']:.4f}" if isinstance(value, dict) else value


def _written(document: dict[str, Any], csv: Path, budget: Any, pictures: int) -> str:
    from safety.plain_yaml import dump

    words = f"Calibrated by `farm policy calibrate` on {pictures:,} pictures of {csv.name}: at most {budget.miss:g} of"
    words += f" each concept missed,\n# at least {budget.precision:g} of the blocked showing it, each with confidence"
    return f"# {words} {budget.confidence:g} (Clopper-Pearson).\n{dump(document)}"
