"""Every change of a job's state, from submission to publication.

`Staging` takes batches in, `Leasing` hands jobs out and takes verdicts and artifacts back, `Progressing` is told how
far they are meanwhile, `Control` is what people do.
Each method is one short transaction (or a chain of them, where it says so) that also writes its events and, for a
person's deed, its audit row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from sqlalchemy import Connection, Engine, delete, select

from farm.backlog import Backlog
from farm.control import Control
from farm.db import insert_many, reading, transact, transaction
from farm.leasing import MAX_DETAIL, Finished, LaneView, Stored
from farm.ports import GangStatus, NodeStatus
from farm.progress import Progressing
from farm.staging import NewJob, Staging
from farm.tables import COMPONENT, GANG, NODE

__all__ = ["Finished", "JobQueue", "LaneView", "NewJob", "Stored"]
GANG_FIELDS = ("pool", "place", "model", "gang", "state", "waits_for", "since", "nodes")
GONE_S = 600.0  # a dispatcher that was silent for so long has ended


class JobQueue(Staging, Progressing, Backlog, Control):
    def __init__(
        self, engine: Engine, clock: Callable[[], float] = time.time, licences: Mapping[str, str] | None = None
    ) -> None:
        """`licences`: model to the licence without whose acceptance no job of it is leased."""
        self.engine, self.clock, self.licences = engine, clock, licences or {}

    @transaction
    def tell_gangs(
        self, connection: Connection, dispatcher: str, gangs: Sequence[GangStatus], nodes: Sequence[NodeStatus] = ()
    ) -> None:
        """In place of all that this dispatcher, or one that is long silent, said before."""
        now = self.clock()
        for told in (GANG, NODE):
            gone = (told.c.dispatcher == dispatcher) | (told.c.beat_at < now - GONE_S)
            connection.execute(delete(told).where(gone))
        said = {"dispatcher": dispatcher, "beat_at": now}
        rows = [{name: getattr(gang, name) for name in GANG_FIELDS} | said for gang in gangs]
        for row in rows:
            row["waits_for"] = row["waits_for"].replace("\0", "")[:MAX_DETAIL]
        insert_many(connection, GANG, rows)
        insert_many(connection, NODE, [asdict(node) | said for node in nodes])

    def forget_silent(self, older_than_s: float = 24 * 3600.0) -> int:
        """A process that has said nothing for a day is gone: every start of one makes a new name."""
        silent = COMPONENT.c.beat_at < self.clock() - older_than_s
        with reading(self.engine) as connection:  # asked every second, and there is almost never one
            if connection.execute(select(COMPONENT.c.name).where(silent).limit(1)).first() is None:
                return 0
        return transact(self.engine, lambda connection: connection.execute(delete(COMPONENT).where(silent)).rowcount)
