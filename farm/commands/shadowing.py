"""`farm policy shadow`: a policy on trial beside the one in force."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.commands.in_force import By, standing
from farm.commands.output import as_json, say, table
from farm.commands.policy import A_POLICY, Json, opened
from farm.commands.session import open_database
from farm.errors import BadInput

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from farm.config import Settings
    from safety.policy import Policy


def shadow(
    policy: Annotated[str, typer.Argument(metavar="[POLICY|none]", help=A_POLICY)] = "",
    by: By = "",
    report: Annotated[bool, typer.Option("--report", help="Say how it differs from what was said.")] = False,
    json_: Json = False,
) -> None:
    """Let a policy judge live work beside the one in force, without deciding anything; `none` ends it. With --report,
    say how often it would have decided otherwise, by stage and by what it saw."""
    from farm import config

    settings = config.load()
    with open_database(settings) as engine:
        if report:
            _report(engine, policy, json_)
        elif policy:
            _put(engine, policy, by, settings)
        else:
            raise BadInput("which policy?", field="POLICY", fix="name a file, a hash or none; or add --report")


def _put(engine: Engine, policy: str, by: str, settings: Settings) -> None:
    from farm import rules
    from farm.db import transact

    whose = (by, settings.project, time.time())
    if policy == "none":
        ended = transact(engine, lambda one: rules.end_shadow(one, *whose))
        say("farm: no policy is in shadow any more" if ended else "farm: none was in shadow")
        return
    found = opened(policy)
    _refuse_another_classifier(engine, found)
    new = transact(engine, lambda one: rules.put(one, rules.SHADOW, found.document, *whose))
    say(f"farm: {found.name} {found.hash[:12]} {'is' if new else 'was already'} in shadow; --report tells of it")


def _refuse_another_classifier(engine: Engine, found: Policy) -> None:
    """It judges from the numbers of the policy in force, so what makes them must be the same."""
    from farm import rules
    from farm.db import reading
    from safety.policy import parse
    from safety.scoring import fingerprint_of

    with reading(engine) as connection:
        stands = rules.standing(connection).get(rules.ACTIVE)
    if stands and fingerprint_of(found, "") != fingerprint_of(parse(stands.document), ""):
        says = f"it could judge nothing: {stands.name}, which is in force, has not the same classifier and labels"
        raise BadInput(says, field="classifier", fix="`farm policy eval` tells it on labelled pictures instead")


def _report(engine: Engine, policy: str, json_: bool) -> None:
    from farm import rules
    from farm import shadow as beside
    from farm.db import reading

    found = opened(policy) if policy else standing(engine, rules.SHADOW)
    with reading(engine) as connection:
        rows, unjudged = beside.report(connection, found.hash), beside.left_out(connection, found.hash)
    if json_:
        as_json({"policy": found.hash, "name": found.name, "matrix": rows, "unjudged": unjudged})
    else:
        _print_matrix(found, [row | {"against": row["against"][:12]} for row in rows])
        if unjudged:
            say(f"farm: {unjudged:,} it could not judge since it stands there; the gates' logs say why")


def _print_matrix(found: Policy, rows: list[dict[str, Any]]) -> None:
    """First all of each stage, then what flips by the concept that the shadow saw."""
    heads = ("against", "stage", "from", "to")
    stages: Counter[tuple[str, ...]] = Counter()
    for row in rows:
        stages[tuple(row[head] for head in heads)] += row["count"]
    shown = [dict(zip(heads, way, strict=True)) | {"count": count} for way, count in stages.items()]
    if shown:
        table(shown, [*heads, "count"])
    if flips := [row for row in rows if row["from"] != row["to"]]:
        print("\nWhat it saw where it differs")
        table(flips, ["against", "stage", "concept", "from", "to", "count"])
    total, same = sum(stages.values()), sum(row["count"] for row in rows if row["from"] == row["to"])
    say(f"farm: {found.name} {found.hash[:12]} judged {total:,} beside the policy in force; the same: {same:,}")
