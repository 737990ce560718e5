"""How much waits, so that there are as many gangs as it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from sqlalchemy import Connection, Engine, func, select

from farm import licences, moves
from farm.db import reading
from farm.job import State
from farm.moves import is_state
from farm.tables import JOB, LANE

COUNTED = 10_000  # of one lane: what waits behind them does not ask for more gangs


class Backlog:
    engine: Engine
    clock: Callable[[], float]
    licences: Mapping[str, str]

    def backlog(self, lanes: Iterable[int]) -> dict[int, int]:
        """How many jobs of each lane could be had now; none of a model whose licence nobody has accepted."""
        due = select(JOB.c.id).where(
            JOB.c.lane_id == LANE.c.id, is_state(State.QUEUED), JOB.c.not_before <= self.clock()
        )
        some = due.correlate(LANE).limit(COUNTED).subquery()
        count = select(func.count()).select_from(some).scalar_subquery()
        found: dict[int, int] = {}
        with reading(self.engine) as connection:
            refused = self._refused(connection)
            for asked in moves.chunks(lanes):
                rows = connection.execute(select(LANE.c.id, LANE.c.model, count).where(LANE.c.id.in_(asked)))
                found |= {id_: 0 if model in refused else jobs for id_, model, jobs in rows}
        return found

    def _refused(self, connection: Connection) -> set[str]:
        accepted = licences.standing(connection) if self.licences else {}
        return {model for model, licence in self.licences.items() if (model, licence) not in accepted}
