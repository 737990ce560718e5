"""How much waits, so that there are as many gangs as it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from sqlalchemy import Connection, Engine, func, select

from farm import licences, moves
from farm.db import reading
from farm.job import State
from farm.leasing import LaneView
from farm.moves import is_state
from farm.tables import JOB, LANE

COUNTED = 10_000  # of one model: what waits behind them does not ask for more gangs


class Backlog:
    engine: Engine
    clock: Callable[[], float]
    licences: Mapping[str, str]

    def backlog(self, lanes: Iterable[LaneView]) -> dict[int, int]:
        """How many jobs of each lane could be had now; none of a model whose licence nobody has accepted."""
        mine: dict[str, list[int]] = {}
        for lane in lanes:
            mine.setdefault(lane.model, []).append(lane.id)
        found: dict[int, int] = {}
        with reading(self.engine) as connection:
            refused = self._refused(connection)
            for model, ids in mine.items():
                found |= dict.fromkeys(ids, 0) if model in refused else self._counted(connection, ids)
        return found

    def _counted(self, connection: Connection, lanes: Sequence[int]) -> dict[int, int]:
        """Each lane in equal parts of COUNTED; what some leave of theirs is for those that hold more."""
        found, full, share = dict.fromkeys(lanes, 0), lanes, max(1, COUNTED // len(lanes))
        while full:
            for asked in moves.chunks(full):
                found |= self._up_to(connection, asked, share)
            full = [id_ for id_ in full if found[id_] >= share]
            further = (COUNTED - sum(found.values())) // len(full) if full else 0
            if further <= 0:
                break
            share += further
        return found

    def _up_to(self, connection: Connection, lanes: Sequence[int], share: int) -> dict[int, int]:
        due = select(JOB.c.id).where(
            JOB.c.lane_id == LANE.c.id, is_state(State.QUEUED), JOB.c.not_before <= self.clock()
        )
        some = due.correlate(LANE).limit(share).subquery()
        count = select(func.count()).select_from(some).scalar_subquery().label("jobs")
        rows = connection.execute(select(LANE.c.id, count).where(LANE.c.id.in_(lanes)))
        return {row.id: row.jobs for row in rows}

    def _refused(self, connection: Connection) -> set[str]:
        accepted = licences.standing(connection) if self.licences else {}
        return {model for model, licence in self.licences.items() if (model, licence) not in accepted}
