"""Rows that get their number after they are committed, in chunks, one sealer at a time: events and the audit log."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, Engine, Table, literal_column, select

from farm.db import only_one, reading, transact

# Spelled out, so that both databases use the small index of unsealed rows.
UNSEALED = literal_column("seq").is_(None)


def seal(engine: Engine, table: Table, lock: int, some: Callable[[Connection, int], int], at_once: int) -> int:
    """`some` numbers at most `at_once` rows while it holds the lock. Cheap when there is nothing to do."""

    def work(connection: Connection) -> int:
        only_one(connection, lock)
        return some(connection, at_once)

    sealed = 0
    while _waiting(engine, table):
        count = transact(engine, work)
        sealed += count
        if count < at_once:
            break
    return sealed


def _waiting(engine: Engine, table: Table) -> bool:
    with reading(engine) as connection:
        return connection.execute(select(table.c.id).where(UNSEALED).limit(1)).first() is not None
