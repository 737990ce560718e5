"""Every change of a job's state, from submission to publication.

`Staging` takes batches in, `Leasing` hands jobs out and takes verdicts and artifacts back, `Control` is what people do.
Each method is one short transaction (or a chain of them, where it says so) that also writes its events and, for a
person's deed, its audit row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from sqlalchemy import Engine

from farm.control import Control
from farm.leasing import Finished, LaneView, Leasing, Stored
from farm.staging import NewJob, Staging

__all__ = ["Finished", "JobQueue", "LaneView", "NewJob", "Stored"]


class JobQueue(Staging, Leasing, Control):
    def __init__(
        self, engine: Engine, clock: Callable[[], float] = time.time, licences: Mapping[str, str] | None = None
    ) -> None:
        """`licences`: model to the licence without whose acceptance no job of it is leased."""
        self.engine, self.clock, self.licences = engine, clock, licences or {}
