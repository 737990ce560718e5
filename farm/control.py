"""What people do to batches and jobs. Each deed leaves an audit row in the transaction that does it.

A large batch is changed in chunks, so that heartbeats get their turn; what makes the deed visible comes in the first of
them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from sqlalchemy import Connection, Engine, Row, insert, select, true, update

from farm import aftermath, audit, events, moves
from farm.db import reading, transaction
from farm.errors import BadInput, Conflict, NotFound, nearest
from farm.job import State
from farm.leasing import Stored, artifact_row, insert_artifacts
from farm.moves import Move
from farm.tables import ARTIFACT, BATCH, DECISION, DECISIONS, JOB, LANE, UNFOLLOWED

CHUNK = 500
UNTOUCHED_S = 60.0  # whoever cancels a batch has died if it took longer over one chunk
RETRYABLE = (State.FAILED,)
STOPPABLE = (State.WAITING, State.QUEUED, State.LEASED)
# What a decision makes of a job.
DECIDED = {"approve": State.APPROVED, "reject": State.REJECTED, "withdraw": State.HELD}


class Control:
    engine: Engine
    clock: Callable[[], float]

    @transaction
    def cancel_job(self, connection: Connection, job_id: int, by: str, reason: str = "") -> bool:
        """At once, even while it is drawn: the late result finds its lease gone. False: it had ended already."""
        now, job = self.clock(), _job(connection, job_id)
        if State(job.state) not in STOPPABLE:
            return False
        moves.apply(connection, [Move(job, State.CANCELLED, reason or f"cancelled by {by}")], now)
        audit.append(connection, job.project_id, by, "cancel", f"job {job_id}", now, reason=reason)
        return True

    def cancel_batch(self, batch_id: int, by: str, reason: str = "") -> int:
        """Returns how many jobs this ended; what was published or held stays. A batch that has ended stays as it is."""
        self._stop_batch(batch_id, by, reason)
        return self._cancel_rest(batch_id, reason or f"the batch was cancelled by {by}")

    def finish_cancelled(self) -> int:
        """Go on where a process died while cancelling: such batches still have open lanes, and nobody touches them."""
        untouched = BATCH.c.updated_at < self.clock() - UNTOUCHED_S
        unfinished = select(BATCH.c.id, BATCH.c.reason).where(BATCH.c.state == "cancelled", untouched)
        lanes = select(LANE.c.batch_id).where(LANE.c.open == true())
        with reading(self.engine) as connection:
            batches = connection.execute(unfinished.where(BATCH.c.id.in_(lanes))).all()
        return sum(self._cancel_rest(batch.id, batch.reason) for batch in batches)

    def follow(self) -> int:
        """Move the children that a change of their parents has left behind, in chunks. Returns of how many parents."""
        seen: set[int] = set()
        first = select(UNFOLLOWED.c.job_id).order_by(UNFOLLOWED.c.job_id).limit(1)
        while True:
            with reading(self.engine) as connection:
                job_id = connection.execute(first).scalar()
            if job_id is None:
                return len(seen)
            self._follow(job_id)
            seen.add(job_id)

    @transaction
    def _follow(self, connection: Connection, job_id: int) -> None:
        moves.follow(connection, job_id, self.clock())

    @transaction
    def _stop_batch(self, connection: Connection, batch_id: int, by: str, reason: str) -> None:
        now, batch = self.clock(), _batch(connection, batch_id)
        if batch.state == "cancelled":
            return
        _check_goes_on(connection, batch_id)
        words = reason or f"the batch was cancelled by {by}"
        # Without its hash the same content may be submitted again.
        values = {"state": "cancelled", "reason": words, "content_sha256": None, "updated_at": now}
        connection.execute(update(BATCH).where(BATCH.c.id == batch_id).values(values))
        connection.execute(update(LANE).where(LANE.c.batch_id == batch_id).values(open=True))
        _batch_deed(connection, batch, "batch_cancelled", "cancel", by, reason, now)

    def _cancel_rest(self, batch_id: int, reason: str) -> int:
        total = 0
        while count := self._cancel_some(batch_id, reason):
            total += count
        self._close_lanes(batch_id)
        return total

    @transaction
    def _cancel_some(self, connection: Connection, batch_id: int, reason: str) -> int:
        now = self.clock()
        connection.execute(update(BATCH).where(BATCH.c.id == batch_id).values(updated_at=now))
        query = select(*moves.LOCKED).where(JOB.c.batch_id == batch_id, JOB.c.state.in_(STOPPABLE))
        rows = connection.execute(query.order_by(JOB.c.id).limit(CHUNK).with_for_update()).all()
        moves.apply(connection, [Move(row, State.CANCELLED, reason) for row in rows], now, but=batch_id)
        return len(rows)

    @transaction
    def _close_lanes(self, connection: Connection, batch_id: int) -> None:
        connection.execute(update(LANE).where(LANE.c.batch_id == batch_id).values(open=False))

    def retry(
        self,
        *,
        job_ids: Iterable[int] = (),
        batch_id: int | None = None,
        states: Collection[str] = (State.FAILED,),
        by: str,
    ) -> int:
        """Back to the queue, with the old faults kept but no longer counted. Returns how many."""
        wanted = [State(state) for state in states if _retryable(state)]
        if batch_id is None:
            return sum(self._retry_some(some, wanted, by) for some in moves.chunks(job_ids, CHUNK))
        total, last = 0, 0
        mine = select(JOB.c.id).where(JOB.c.batch_id == batch_id, JOB.c.state.in_(wanted))
        while True:
            # Each is asked for once: what fails again meanwhile is not tried for ever.
            with reading(self.engine) as connection:
                some = list(connection.execute(mine.where(JOB.c.id > last).order_by(JOB.c.id).limit(CHUNK)).scalars())
            if not some:
                return total
            total += self._retry_some(some, wanted, by)
            last = some[-1]

    @transaction
    def _retry_some(self, connection: Connection, job_ids: list[int], states: Collection[State], by: str) -> int:
        now = self.clock()
        # Locked first: a cancel that commits meanwhile would leave the job queued where no lane is open.
        mine = select(JOB.c.batch_id).where(JOB.c.id.in_(job_ids))
        batches = select(BATCH.c.id, BATCH.c.state).where(BATCH.c.id.in_(mine)).order_by(BATCH.c.id)
        locked = connection.execute(batches.with_for_update(read=True)).all()
        cancelled = {batch.id for batch in locked if batch.state == "cancelled"}
        rows = [row for row in moves.lock(connection, job_ids).values() if State(row.state) in states]
        if gone := cancelled & {row.batch_id for row in rows}:
            raise Conflict(f"batch {min(gone)} is cancelled", fix="submit it again")
        moves.apply(connection, [Move(row, State.QUEUED, forgiven=row.attempt) for row in rows], now)
        for row in rows:
            audit.append(connection, row.project_id, by, "retry", f"job {row.id}", now)
        return len(rows)

    def pause(self, batch_id: int, by: str, reason: str = "") -> None:
        """No job of it is claimed from now on; those being drawn end."""
        self._turn(batch_id, "open", "paused", by, reason)

    def resume(self, batch_id: int, by: str, reason: str = "") -> None:
        """What was judged by now does not pause it again."""
        self._turn(batch_id, "paused", "open", by, reason)

    @transaction
    def _turn(self, connection: Connection, batch_id: int, old: str, new: str, by: str, reason: str) -> None:
        now, batch = self.clock(), _batch(connection, batch_id)
        if batch.state not in (old, new):
            raise Conflict(f"batch {batch_id} is {batch.state}")
        _check_goes_on(connection, batch_id)
        if batch.state == new:
            return
        values = {"state": new, "reason": reason, "updated_at": now}
        if new == "open":
            values["forgiven"] = aftermath.judged_so_far(connection)
        connection.execute(update(BATCH).where(BATCH.c.id == batch_id).values(values))
        deed = "pause" if new == "paused" else "resume"
        _batch_deed(connection, batch, f"batch_{new}", deed, by, reason, now)

    @transaction
    def set_priority(self, connection: Connection, batch_id: int, priority: int, by: str) -> None:
        """The batch's part of the priority; each line's own is added to it."""
        now, batch = self.clock(), _batch(connection, batch_id)
        _check_goes_on(connection, batch_id)
        connection.execute(update(BATCH).where(BATCH.c.id == batch_id).values(priority=priority, updated_at=now))
        _batch_deed(connection, batch, "batch_priority", "priority", by, f"from {batch.priority} to {priority}", now)

    @transaction
    def decide(
        self, connection: Connection, job_id: int, artifact_id: int, outcome: str, person: str, reason: str
    ) -> int:
        """A person's word on the artifact a job holds: approve, reject, or withdraw it. Returns the decision's id."""
        if outcome not in DECISIONS:
            raise BadInput(f"unknown decision {outcome!r}", field="outcome", fix=nearest(outcome, DECISIONS))
        now, job = self.clock(), _job(connection, job_id)
        if job.artifact_id != artifact_id:
            raise Conflict(f"job {job_id} holds another artifact now", fix="look at it again")
        row = {"project_id": job.project_id, "job_id": job_id, "artifact_id": artifact_id, "outcome": outcome}
        row |= {"person": person, "reason": reason, "created_at": now}
        decision = int(connection.execute(insert(DECISION).values(row).returning(DECISION.c.id)).scalar_one())
        moves.apply(connection, [Move(job, DECIDED[outcome], reason)], now)
        if outcome == "reject":
            aftermath.follow_blocks(connection, [job_id], person, aftermath.REJECTS, now)
        audit.append(
            connection, job.project_id, person, outcome, f"job {job_id}", now, artifact=artifact_id, reason=reason
        )
        return decision

    @transaction
    def publish_approved(self, connection: Connection, job_id: int, decision_id: int, stored: Stored) -> bool:
        """The approved picture, signed again with its approval. False: the approval was withdrawn meanwhile."""
        now, job = self.clock(), _job(connection, job_id)
        if job.state != State.APPROVED:
            return False
        seen = connection.execute(select(ARTIFACT.c.verdict_id).where(ARTIFACT.c.id == job.artifact_id)).scalar_one()
        row = artifact_row(stored, job.project_id, job_id, seen, now, decision_id)
        artifact_id = insert_artifacts(connection, [row])[job_id]
        moves.apply(connection, [Move(job, State.PUBLISHED, artifact_id=artifact_id)], now)
        return True


def _job(connection: Connection, job_id: int) -> Row[Any]:
    row = moves.lock(connection, [job_id]).get(job_id)
    if row is None:
        raise NotFound(f"no job {job_id}")
    return row


def _batch(connection: Connection, batch_id: int) -> Row[Any]:
    row = connection.execute(select(BATCH).where(BATCH.c.id == batch_id).with_for_update()).first()
    if row is None or row.state in ("staging", "discarded"):
        raise NotFound(f"no batch {batch_id}")
    return row


def _check_goes_on(connection: Connection, batch_id: int) -> None:
    left = select(JOB.c.id).where(JOB.c.batch_id == batch_id, JOB.c.state.in_(STOPPABLE)).limit(1)
    if connection.execute(left).first() is None:
        raise Conflict(f"batch {batch_id} has ended", fix=f"`farm show {batch_id}` says how")


def _batch_deed(
    connection: Connection, batch: Row[Any], kind: str, action: str, by: str, reason: str, now: float
) -> None:
    events.append(connection, [events.event(batch.project_id, kind, now, batch_id=batch.id, reason=reason)])
    audit.append(connection, batch.project_id, by, action, f"batch {batch.id}", now, reason=reason)


def _retryable(state: str) -> bool:
    if state not in RETRYABLE:
        raise BadInput(f"a job that is {state} is not tried again", field="state", fix=nearest(state, RETRYABLE))
    return True
