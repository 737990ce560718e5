"""What happened, in an order that a reader can resume from.

Transactions commit out of order, so an id given inside one is no place to resume: a reader that has seen 8 would miss a
7 that commits later. The sealer therefore numbers rows after they are committed, one sealer at a time, and readers see
numbered rows only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Engine, func, select, update

from farm import sealing
from farm.db import EVENT_LOCK, insert_many, reading
from farm.sealing import UNSEALED
from farm.tables import EVENT

SEAL_AT_ONCE = 5000
ILLEGAL = "illegal"  # a picture is on a list of what nobody may see
FOR_OPERATORS = frozenset({ILLEGAL})  # whoever sent the picture learns nothing of it


def event(
    project_id: str, kind: str, now: float, *, batch_id: int | None = None, job_id: int | None = None, **data: Any
) -> dict[str, Any]:
    return {
        "project_id": project_id,
        "batch_id": batch_id,
        "job_id": job_id,
        "kind": kind,
        "data": data,
        "created_at": now,
    }


def append(connection: Connection, rows: Iterable[dict[str, Any]]) -> None:
    insert_many(connection, EVENT, list(rows))


def seal(engine: Engine) -> int:
    """Number what is committed; returns how many."""
    return sealing.seal(engine, EVENT, EVENT_LOCK, _seal_some, SEAL_AT_ONCE)


def _seal_some(connection: Connection, at_once: int) -> int:
    last = connection.execute(select(func.coalesce(func.max(EVENT.c.seq), 0))).scalar_one()
    place = func.row_number().over(order_by=EVENT.c.id)
    fresh = select(EVENT.c.id, place.label("place")).where(UNSEALED).order_by(EVENT.c.id).limit(at_once).subquery()
    number = update(EVENT).values(seq=last + fresh.c.place).where(EVENT.c.id == fresh.c.id)
    return connection.execute(number).rowcount


def read(engine: Engine, after_seq: int = 0, project_id: str | None = None, limit: int = 500) -> list[dict[str, Any]]:
    query = select(EVENT).where(EVENT.c.seq > after_seq).order_by(EVENT.c.seq).limit(limit)
    if project_id is not None:
        query = query.where(EVENT.c.project_id == project_id)
    with reading(engine) as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def last_seq(engine: Engine) -> int:
    with reading(engine) as connection:
        return int(connection.execute(select(func.coalesce(func.max(EVENT.c.seq), 0))).scalar_one())
