"""What the policy in shadow would have said of live work, and how often that is something else than what was said."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from sqlalchemy import Connection, exists, func, select

from farm.db import upsert
from farm.ports import Stage, Verdict
from farm.rules import HEARD_S, SHADOW
from farm.tables import IN_FORCE, SHADOW_VERDICT, VERDICT

GROUPS = [SHADOW_VERDICT.c[name] for name in ("against", "stage", "active_outcome", "outcome", "concept")]
SAME = ("job_id", "attempt", "stage", "subject")


class Of(Protocol):
    @property
    def project_id(self) -> str: ...
    @property
    def job_id(self) -> int: ...
    @property
    def attempt(self) -> int: ...


def keep(connection: Connection, pairs: Iterable[tuple[Of, Verdict]], now: float) -> None:
    """Beside the verdicts, in their transaction; what was kept before stays as it is."""
    rows = [
        {"project_id": of.project_id, "job_id": of.job_id, "attempt": of.attempt, "stage": str(said.stage)}
        | {"subject": said.subject, "against": said.policy, "active_outcome": str(said.outcome)}
        | {"policy": beside.policy, "outcome": str(beside.outcome), "concept": beside.concept}
        | {"probability": beside.probability, "created_at": now}
        for of, said in pairs
        if (beside := said.shadow) is not None and said.stage is not Stage.PREVIEW
    ]
    if rows:
        connection.execute(upsert(connection, SHADOW_VERDICT).on_conflict_do_nothing(), rows)


def report(connection: Connection, policy: str) -> list[dict[str, Any]]:
    """How often each outcome stood beside each, by the policy in force then, the stage and what the shadow saw."""
    count = func.count().label("count")
    query = select(*GROUPS, count).where(SHADOW_VERDICT.c.policy == policy).group_by(*GROUPS).order_by(*GROUPS)
    names = {"active_outcome": "from", "outcome": "to"}
    rows = connection.execute(query).mappings()
    return [{names.get(name, name): value for name, value in row.items()} for row in rows]


def left_out(connection: Connection, policy: str) -> int:
    """How many verdicts of live work have none of it beside them, since it and its lists stand in shadow: it could not
    judge those. What was judged before by another policy is not counted: a rescan asks no shadow."""
    there = (IN_FORCE.c.role == SHADOW) & (IN_FORCE.c.policy == policy)
    since = connection.execute(select(IN_FORCE.c.created_at).where(there)).scalar_one_or_none()
    if since is None:
        return 0
    earlier = VERDICT.alias("earlier")
    before = exists().where(*(earlier.c[name] == VERDICT.c[name] for name in SAME), earlier.c.id < VERDICT.c.id)
    beside = exists().where(*(SHADOW_VERDICT.c[name] == VERDICT.c[name] for name in SAME))
    query = select(func.count()).select_from(VERDICT).where(VERDICT.c.created_at > since + HEARD_S)
    query = query.where(
        VERDICT.c.stage != str(Stage.PREVIEW), ~before, ~beside.where(SHADOW_VERDICT.c.policy == policy)
    )
    return int(connection.execute(query).scalar_one())
