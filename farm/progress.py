"""How far the jobs are that are drawn now: a row each, overwritten, believed only while its lease stands.

An event would be kept for ever, and law 3 needs none of this: what is lost of it is told again a second later.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import ColumnElement, Connection, case, delete, exists, select, update

from farm.db import reading, transact, transaction, upsert
from farm.job import State
from farm.leasing import Leasing
from farm.moves import chunks
from farm.ports import Lease, Outcome, Signed, Stage, Step
from farm.tables import DOUBTED, JOB, PROGRESS, VERDICT

STANDS = exists().where(JOB.c.id == PROGRESS.c.job_id, JOB.c.attempt == PROGRESS.c.attempt, JOB.c.state == State.LEASED)


def doubted(job_id: ColumnElement[int] | int) -> ColumnElement[bool]:
    """Did the gate, in any attempt, not plainly allow the prompt, the input or a frame of this job, or block one beside
    it? Then a person is asked before anyone sees anything of it, however soon the preview was made."""
    doubt = VERDICT.alias("doubt")
    on_it = (doubt.c.job_id == job_id, doubt.c.stage != str(Stage.PREVIEW))
    said = exists().where(*on_it, doubt.c.outcome != str(Outcome.ALLOW))
    return said | exists().where(DOUBTED.c.job_id == job_id)


class Progressing(Leasing):
    @transaction
    def tell_steps(self, connection: Connection, steps: Sequence[tuple[Lease, Step]]) -> None:
        """The preview of this attempt stays, that of an earlier one goes."""
        held, now = self._held(connection, [lease for lease, _ in steps]), self.clock()
        statement = upsert(connection, PROGRESS)
        given = statement.excluded
        ours = PROGRESS.c.attempt == given.attempt
        kept = {name: case((ours, PROGRESS.c[name])) for name in ("preview", "mime")}
        said = {name: given[name] for name in ("project_id", "attempt", "step", "total", "updated_at")}
        for lease, step in steps:
            if lease.job_id in held:
                values = {"job_id": lease.job_id, "project_id": lease.project_id, "attempt": lease.attempt}
                values |= {"step": step.step, "total": step.total, "updated_at": now}
                row = statement.values(values)
                connection.execute(row.on_conflict_do_update(index_elements=["job_id"], set_=said | kept))

    @transaction
    def keep_preview(self, connection: Connection, lease: Lease, verdict_id: int, signed: Signed) -> bool:
        """Shown from now on, until the gate doubts the job. False: its lease is lost, its verdict does not allow it, or
        the job is doubted already."""
        if not self._held(connection, [lease]):
            return False
        verdict = (VERDICT.c.id == verdict_id, VERDICT.c.job_id == lease.job_id, VERDICT.c.attempt == lease.attempt)
        allows = (VERDICT.c.stage == str(Stage.PREVIEW), VERDICT.c.outcome == str(Outcome.ALLOW))
        if connection.execute(select(VERDICT.c.id).where(*verdict, *allows, ~doubted(lease.job_id))).first() is None:
            return False
        return self._show(connection, lease, signed)

    @transaction
    def drop_preview(self, connection: Connection, lease: Lease) -> None:
        """What was shown before is not shown any more: the gate thinks otherwise of a later one."""
        self._show(connection, lease, None)

    def forget_steps(self) -> int:
        """Of jobs that are drawn no more."""
        with reading(self.engine) as connection:  # asked every second, and most often there is none
            if connection.execute(select(PROGRESS.c.job_id).where(~STANDS).limit(1)).first() is None:
                return 0
        return transact(self.engine, lambda connection: connection.execute(delete(PROGRESS).where(~STANDS)).rowcount)

    def unended(self, job_ids: Iterable[int]) -> set[int]:
        """Which of these are drawn, or may be without a person's doing."""
        alive: set[int] = set()
        with reading(self.engine) as connection:
            for some in chunks(job_ids):
                query = select(JOB.c.id).where(JOB.c.id.in_(some), JOB.c.state.in_([State.QUEUED, State.LEASED]))
                alive |= set(connection.execute(query).scalars())
        return alive

    def _show(self, connection: Connection, lease: Lease, signed: Signed | None) -> bool:
        mine = (PROGRESS.c.job_id == lease.job_id, PROGRESS.c.attempt == lease.attempt)
        shown = {"preview": signed and signed.data, "mime": signed and signed.mime, "updated_at": self.clock()}
        return connection.execute(update(PROGRESS).where(*mine).values(shown)).rowcount == 1
