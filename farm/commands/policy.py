"""`farm policy`: the documents by which the gate judges."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.commands.output import as_json, clean, facts, moment, say, table
from farm.commands.session import open_database
from farm.errors import BadInput, FarmError

if TYPE_CHECKING:
    from farm.config import Settings
    from safety.policy import Policy
    from safety.scoring import Measure, Scale

policy = typer.Typer(help="What the gate looks for, at which limits, and what follows.")
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
A_POLICY = "A file, or the hash of one that was in force once, or the beginning of it."
File = Annotated[str, typer.Argument(metavar="POLICY", help=A_POLICY)]
HEX = re.compile("[0-9a-f]{6,64}")


@policy.command("check")
def check(file: File, json_: Json = False) -> None:
    """Say whether a policy can be put in force on this farm, and what of it would not judge yet. Exit code 1 if it is
    refused."""
    try:
        found = opened(file)
    except BadInput as refused:
        if json_:
            as_json({"valid": False, "field": refused.field, "problem": refused.detail, "fix": refused.fix})
        else:
            say(f"farm: refused: {refused}")
        raise typer.Exit(1) from refused
    if json_:
        as_json({"valid": True, "name": found.name, "hash": found.hash, "doubts": _doubts(found)})
        return
    print(clean(f"{found.name} {found.hash}: nothing in it contradicts itself"), flush=True)
    say("farm: asking this farm's encoder what it would judge")  # which takes seconds to load
    for doubt in _doubts(found):
        print(clean(f"doubt: {doubt}"))


@policy.command("show")
def show(file: Annotated[str, typer.Argument(metavar="[POLICY]", help=A_POLICY)] = "", json_: Json = False) -> None:
    """Say what a policy looks for, at which limits, and what follows; left out: the one in force, or else
    that of the settings."""
    found = opened(file)
    if json_:
        import json

        as_json({"hash": found.hash, "document": json.loads(found.document)})
        return
    facts(
        {
            "policy": found.name,
            "hash": found.hash,
            "in force": _in_force(found),
            "about": found.about,
            **_after_a_block(found),
        }
    )
    for title, rows in _tables(found).items():
        if rows:
            print(f"\n{title}")
            table(rows, list(rows[0]))


@policy.command("diff")
def diff(
    before: Annotated[str, typer.Argument(metavar="BEFORE", help=A_POLICY)],
    after: Annotated[str, typer.Argument(metavar="AFTER", help="Another.")],
    json_: Json = False,
) -> None:
    """Say in words what two policies say differently."""
    from safety.diff import changes

    old, new = opened(before), opened(after)
    found = changes(old, new)
    if json_:
        told = [asdict(change) | {"words": change.words} for change in found]
        as_json({"before": old.hash, "after": new.hash, "changes": told})
        return
    for change in found:
        print(clean(change.words))
    if not found:
        say(f"farm: they say the same: {new.hash}")


def opened(name: str) -> Policy:
    """The policy in a file, or one that was in force once, by its hash; without a name, the one in force, or else that
    of the settings."""
    from farm import config, rules
    from farm.db import reading
    from safety.policy import load, parse

    settings = config.load()
    if not name:
        stands = rules.look(settings.database_url).get(rules.ACTIVE)
        return parse(stands.document) if stands else load(settings.policy or None)
    if not HEX.fullmatch(name) or Path(name).exists():
        return load(name)
    with open_database(settings) as engine, reading(engine) as connection:
        return parse(rules.find(connection, name))


def _in_force(found: Policy) -> str:
    """Whether this is the policy that judges; and what to do where the settings name another."""
    from farm import config, rules
    from farm.commands.beforehand import first_policy

    settings = config.load()
    stands = rules.look(settings.database_url)
    mine = [one for one in stands.values() if one.policy == found.hash]
    said = [f"{one.role}, since {moment(one.created_at)}, by {one.person}" for one in mine] or ["no"]
    if settings.policy and rules.ACTIVE in stands:
        said.append(rules.differs(stands[rules.ACTIVE], first_policy(settings).document))
    return "; ".join(word for word in said if word)


def _doubts(found: Policy) -> list[str]:
    """What would send pictures to review, stop the gate, or discard what should be kept, on this farm."""
    from farm import config

    settings = config.load()
    doubts = [
        f"nobody imported its hash list {name}: until `farm policy lists import`, what it applies to goes to review"
        for name in _absent_lists(found, settings)
    ]
    doubts += _unkept(found, settings)
    try:
        measure = _measured(found, settings.encoder)
    except FarmError as error:
        return [*doubts, f"its pictures cannot be judged here: {error}"]
    loose = [scale for scale in measure.scales if scale.calibration is None]
    fix = "everything goes to review until `farm policy calibrate` has fitted it"
    loose_words = [
        f"{_scale(one)} is not calibrated for this farm's encoder ({one.source[:12]}): {fix}" for one in loose
    ]
    return doubts + loose_words


def _absent_lists(found: Policy, settings: Settings) -> list[str]:
    from farm import hash_lists
    from farm.db import reading

    names = [one.name for one in found.hash_lists]
    if not names or not (settings.database or (settings.home / "farm.db").exists()):
        return names
    with open_database(settings) as engine, reading(engine) as connection:
        there = {row["name"] for row in hash_lists.shown(connection) if row["entries"]}
    return [name for name in names if name not in there]


def _scale(scale: Scale) -> str:
    return scale.concept.name + ("" if scale.kind == "phrases" else f"'s {scale.kind}")


def _unkept(found: Policy, settings: Settings) -> list[str]:
    from farm import sealed

    if not any(getattr(concept.pixels, "quarantine_days", 0) for concept in found.concepts):
        return []
    try:
        sealed.read_public(sealed.chosen(settings))
    except FarmError as error:
        return [f"what it should keep in quarantine is discarded: {error}"]
    return []


def _measured(found: Policy, encoder: str) -> Measure:
    from safety.classifier import open_classifier
    from safety.clip import load_encoder
    from safety.scoring import measure_of

    if found.classifier:
        open_classifier(found.classifier)
    return measure_of(found, load_encoder(encoder))


def _after_a_block(found: Policy) -> dict[str, str]:
    spike = found.spike
    paused = spike and f"{spike.share:.0%} of a batch's last {spike.of_last} blocked, of {spike.at_least} or more"
    return {"siblings": f"{found.siblings} those of a blocked job", "pauses": paused or "no batch"}


def _tables(found: Policy) -> dict[str, list[dict[str, Any]]]:
    concepts = [
        {
            "concept": one.name,
            "looks for": "; ".join(one.phrases),
            "against": "; ".join(one.contrast),
            "review from": one.band.t_low,
            "block from": "-" if one.band.t_high is None else one.band.t_high,
            "calibrated for": one.calibration.encoder[:12] if one.calibration else "NOTHING",
            "applies to": ", ".join(one.applies),
            "pixels": _pixels(one.pixels),
            "head": one.head.sha256[:12] if one.head else "",
        }
        for one in found.concepts
    ]
    rules = [
        {"prompt rule": rule.name, "outcome": rule.outcome, "patterns": "; ".join(rule.patterns)}
        for rule in found.prompt_rules
    ]
    lists = [
        {"hash list": one.name, "outcome": one.outcome, "illegal": "yes" if one.illegal else "no"}
        | {"applies to": ", ".join(one.applies)}
        for one in found.hash_lists
    ]
    speaks = found.classifier.speaks if found.classifier else ()
    labels = [{"classifier speaks for": one.concept, "labels": "; ".join(one.labels)} for one in speaks]
    return {"Pictures": concepts, "Prompts": rules, "Hash lists": lists, "Classifier": labels}


def _pixels(pixels: Any) -> str:
    days = getattr(pixels, "quarantine_days", None)
    return f"kept {days} days" if days else str(pixels)
