"""What the policy in shadow would have said of live work, and how often that is something else than what was said."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from sqlalchemy import Connection, func, select

from farm.db import upsert
from farm.ports import Stage, Verdict
from farm.tables import SHADOW_VERDICT

GROUPS = [SHADOW_VERDICT.c[name] for name in ("against", "stage", "active_outcome", "outcome", "concept")]


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
