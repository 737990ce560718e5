"""Every change of a job's state, from submission to publication.

`Staging` takes batches in, `Leasing` hands jobs out and takes verdicts and artifacts back, `Control` is what people do.
Each method is one short transaction (or a chain of them, where it says so) that also writes its events and, for a
person's deed, its audit row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from sqlalchemy import Engine, delete, select

from farm.control import Control
from farm.db import reading, transact
from farm.leasing import Finished, LaneView, Leasing, Stored
from farm.staging import NewJob, Staging
from farm.tables import COMPONENT

__all__ = ["Finished", "JobQueue", "LaneView", "NewJob", "Stored"]


class JobQueue(Staging, Leasing, Control):
    def __init__(
        self, engine: Engine, clock: Callable[[], float] = time.time, licences: Mapping[str, str] | None = None
    ) -> None:
        """`licences`: model to the licence without whose acceptance no job of it is leased."""
        self.engine, self.clock, self.licences = engine, clock, licences or {}

    def forget_silent(self, older_than_s: float = 24 * 3600.0) -> int:
        """A process that has said nothing for a day is gone: every start of one makes a new name."""
        silent = COMPONENT.c.beat_at < self.clock() - older_than_s
        with reading(self.engine) as connection:  # asked every second, and there is almost never one
            if connection.execute(select(COMPONENT.c.name).where(silent).limit(1)).first() is None:
                return 0
        return transact(self.engine, lambda connection: connection.execute(delete(COMPONENT).where(silent)).rowcount)
