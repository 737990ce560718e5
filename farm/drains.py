"""Nodes and gangs that an operator has drained: a gang ends with the job it has, and no further one lies there.

A drain is a row, so that it outlives every process and reaches every dispatcher. A gang's is of no more use once it is
gone; a node's stands until it is undrained, and does not hold for the node that comes after a restart of Ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Row, delete, insert, literal_column, select

from farm import audit
from farm.access import KeyView
from farm.db import reading, transact
from farm.errors import BadInput, NotFound, nearest
from farm.ports import Drained
from farm.tables import DRAIN, GANG, NODE

KEPT_S = 600.0  # a drained gang that nobody has told of for so long is gone


def drain(engine: Engine, name: str, who: KeyView, reason: str = "", clock: Callable[[], float] = time.time) -> str:
    """Returns what it is: node or gang. Saying it twice is saying it once."""
    now = clock()

    def write(connection: Connection) -> str:
        _forget(connection, now)
        one = _named(name, _there(connection), "no node or gang is called")
        if connection.execute(select(DRAIN.c.id).where(DRAIN.c.id == one.id)).first() is None:
            row = {"id": one.id, "kind": one.kind, "name": one.name, "person": who.name, "reason": reason}
            connection.execute(insert(DRAIN).values(**row, created_at=now))
            audit.append(connection, who.project_id, who.name, "drain", f"{one.kind} {one.name}", now, reason=reason)
        return str(one.kind)

    return transact(engine, write)


def undrain(engine: Engine, name: str, who: KeyView, clock: Callable[[], float] = time.time) -> str:
    now = clock()

    def write(connection: Connection) -> str:
        one = _named(name, connection.execute(select(DRAIN)).all(), "nothing that is drained is called")
        connection.execute(delete(DRAIN).where(DRAIN.c.id == one.id))
        audit.append(connection, who.project_id, who.name, "undrain", f"{one.kind} {one.name}", now)
        return str(one.kind)

    return transact(engine, write)


def drained(engine: Engine) -> Drained:
    with reading(engine) as connection:
        rows = connection.execute(select(DRAIN.c.kind, DRAIN.c.id)).all()
    ids = {kind: frozenset(row.id for row in rows if row.kind == kind) for kind in ("node", "gang")}
    return Drained(ids["node"], ids["gang"])


def _there(connection: Connection) -> Sequence[Row[Any]]:
    nodes = select(NODE.c.id, literal_column("'node'").label("kind"), NODE.c.name)
    gangs = select(GANG.c.gang.label("id"), literal_column("'gang'").label("kind"), GANG.c.gang.label("name"))
    return connection.execute(nodes.union(gangs.where(GANG.c.gang != literal_column("''")))).all()


def _named(name: str, some: Sequence[Row[Any]], otherwise: str) -> Row[Any]:
    """By id or name; a node by its host too, where there is no other one."""
    found = [row for row in some if name in (row.id, row.name)]
    found = found or [row for row in some if row.kind == "node" and row.name.split("/")[0] == name]
    found = list({row.id: row for row in found}.values())  # a node may be told of under several names
    if len(found) > 1:
        raise BadInput(f"several are called {name!r}: {', '.join(sorted(row.name for row in found))}", field="name")
    if not found:
        fix = nearest(name, [row.name for row in some]) if some else "`farm pool ls` shows what there is"
        raise NotFound(f"{otherwise} {name!r}", field="name", fix=fix)
    return found[0]


def _forget(connection: Connection, now: float) -> None:
    """Gangs that are gone never come again under the same id."""
    told = select(GANG.c.gang)
    old = (DRAIN.c.kind == "gang") & (DRAIN.c.created_at < now - KEPT_S) & DRAIN.c.id.not_in(told)
    connection.execute(delete(DRAIN).where(old))
