"""How a batch comes in: staged in chunks that nobody sees, then made visible, or thrown away, by one small change."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from farm import audit, events, moves
from farm.db import insert_many, reading, transaction, upsert
from farm.errors import BadInput, Conflict, NotFound
from farm.job import Spec, State
from farm.moves import Move
from farm.tables import BAD_LINE, BATCH, JOB, LANE

CHUNK = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    line: int
    spec: Spec
    index: int = 0  # which of the line's n
    name: str | None = None  # the line's own id
    priority: int = 0
    parent_job_id: int | None = None  # the job it edits, or
    parent_name: str | None = None  # the id of the line of this batch that it edits, or
    upload_id: str | None = None  # the upload it edits


class BadLineLike(Protocol):
    @property
    def line(self) -> int: ...
    @property
    def field(self) -> str: ...
    @property
    def reason(self) -> str: ...


class Staging:
    engine: Engine
    clock: Callable[[], float]

    @transaction
    def open_batch(
        self, connection: Connection, project_id: str, name: str, submitted_by: str, priority: int = 0
    ) -> int:
        """`priority` is added to that of each line."""
        now = self.clock()
        row = {"project_id": project_id, "name": name, "state": "staging", "priority": priority, "lines": 0, "jobs": 0}
        row |= {"bad_lines": 0, "submitted_by": submitted_by, "reason": "", "created_at": now, "updated_at": now}
        return int(connection.execute(insert(BATCH).values(row).returning(BATCH.c.id)).scalar_one())

    def stage(self, batch_id: int, jobs: Iterable[NewJob]) -> int:
        """Any number, in chunks; the parents of other batches must exist, those of this one may come later."""
        try:
            return sum(self._stage(batch_id, some) for some in moves.chunks(jobs, CHUNK))
        except IntegrityError as error:
            raise BadInput("two lines of the batch have the same id", field="id", fix="give each its own") from error

    @transaction
    def _stage(self, connection: Connection, batch_id: int, jobs: Sequence[NewJob]) -> int:
        now = self.clock()
        project_id = _still_staging(connection, batch_id, now, jobs=len(jobs))
        lanes = _lanes(connection, project_id, batch_id, jobs, now)
        parents = _parents(connection, project_id, [job.parent_job_id for job in jobs if job.parent_job_id])
        rows = []
        for job in jobs:
            state, reason = _first_state(job, parents)
            lane_id = lanes[job.spec.shape_key, job.priority]
            rows.append(_job_row(job, project_id, batch_id, lane_id, state, reason, now))
        insert_many(connection, JOB, rows)
        return len(rows)

    def stage_bad(self, batch_id: int, lines: Iterable[BadLineLike]) -> None:
        for some in moves.chunks(lines, CHUNK):
            self._stage_bad(batch_id, some)

    @transaction
    def _stage_bad(self, connection: Connection, batch_id: int, lines: Sequence[BadLineLike]) -> None:
        counted = _last_bad_line(connection, batch_id)
        fresh = {bad.line for bad in lines} - {counted}
        project_id = _still_staging(connection, batch_id, self.clock(), bad_lines=len(fresh))
        common = {"batch_id": batch_id, "project_id": project_id}
        rows = [common | {"line": bad.line, "field": bad.field, "reason": bad.reason} for bad in lines]
        insert_many(connection, BAD_LINE, rows)

    def accept(self, batch_id: int, content_sha256: str | None, *, lines: int | None = None) -> int:
        """Make the batch visible. Where the project has the same content already, that batch is the answer and this one
        is thrown away. `lines` is how many the file had; left out: as many as there are jobs and bad lines."""
        last: int | None = 0
        while last is not None:
            last = self._link(batch_id, last)
        try:
            return self._accept(batch_id, content_sha256, lines)
        except IntegrityError:
            first = self._same_content(batch_id, content_sha256)
        if first is None:  # it was cancelled just then, which gives its content free
            return self._accept(batch_id, content_sha256, lines)
        self.discard(batch_id)
        return first

    @transaction
    def _link(self, connection: Connection, batch_id: int, after: int) -> int | None:
        """Give one chunk of the jobs that name a line their parent, or end them with it. Where to go on, or None."""
        names = select(JOB.c.id, JOB.c.line, JOB.c.parent_name).where(JOB.c.batch_id == batch_id, JOB.c.id > after)
        naming = names.where(
            JOB.c.parent_name.is_not(None), JOB.c.state == State.WAITING, JOB.c.parent_job_id.is_(None)
        )
        children = connection.execute(naming.order_by(JOB.c.id).limit(CHUNK)).all()
        if not children:
            return None
        now = self.clock()
        _still_staging(connection, batch_id, now)
        named = select(JOB.c.name, JOB.c.id).where(JOB.c.batch_id == batch_id, JOB.c["index"] == 0)
        wanted = {row.parent_name for row in children}
        ids = {row.name: row.id for row in connection.execute(named.where(JOB.c.name.in_(wanted)))}
        lost = [row for row in children if row.parent_name not in ids]
        if lost:
            raise BadInput(
                f"line {lost[0].line} edits line:{lost[0].parent_name}, which is not in the batch", field="image"
            )
        parents = {row.id: ids[row.parent_name] for row in children}
        locked = moves.lock(connection, [*parents, *parents.values()])  # so that no end of a parent is missed
        following = [
            Move(locked[child], *moves.child_of(parent, State(locked[parent].state)))
            for child, parent in parents.items()
        ]
        for parent, some in groupby(sorted(parents, key=parents.__getitem__), parents.__getitem__):
            values = {"parent_job_id": parent, "reason": moves.child_of(parent, State.WAITING)[1]}
            connection.execute(update(JOB).where(JOB.c.id.in_(list(some))).values(values))
        moves.apply(connection, [move for move in following if move.state is not State.WAITING], now)
        return int(children[-1].id)

    @transaction
    def _accept(self, connection: Connection, batch_id: int, content_sha256: str | None, lines: int | None) -> int:
        now = self.clock()
        opened = update(BATCH).where(BATCH.c.id == batch_id, BATCH.c.state == "staging")
        count = BATCH.c.jobs + BATCH.c.bad_lines if lines is None else lines
        values = {"state": "open", "content_sha256": content_sha256, "lines": count, "updated_at": now}
        if not connection.execute(opened.values(values)).rowcount:
            return _accepted_before(connection, batch_id)
        batch = connection.execute(select(BATCH).where(BATCH.c.id == batch_id)).one()
        counts = {"jobs": batch.jobs, "bad_lines": batch.bad_lines}
        events.append(connection, [events.event(batch.project_id, "batch_open", now, batch_id=batch_id, **counts)])
        audit.append(connection, batch.project_id, batch.submitted_by, "submit", f"batch {batch_id}", now, **counts)
        return batch_id

    def _same_content(self, batch_id: int, content_sha256: str | None) -> int | None:
        mine = select(BATCH.c.project_id).where(BATCH.c.id == batch_id).scalar_subquery()
        query = select(BATCH.c.id).where(BATCH.c.project_id == mine, BATCH.c.content_sha256 == content_sha256)
        with reading(self.engine) as connection:
            return connection.execute(query).scalar()

    def discard(self, batch_id: int) -> None:
        """Delete a batch that was never accepted, in chunks; what a dying process leaves is collected later."""
        self._mark_discarded(batch_id)
        while self._delete_some(batch_id):
            pass
        self._delete_batch(batch_id)

    @transaction
    def _mark_discarded(self, connection: Connection, batch_id: int) -> None:
        staged = update(BATCH).where(BATCH.c.id == batch_id, BATCH.c.state.in_(["staging", "discarded"]))
        if not connection.execute(staged.values(state="discarded", updated_at=self.clock())).rowcount:
            raise Conflict(f"batch {batch_id} is accepted or unknown", fix="cancel it instead")

    @transaction
    def _delete_some(self, connection: Connection, batch_id: int) -> int:
        connection.execute(update(BATCH).where(BATCH.c.id == batch_id).values(updated_at=self.clock()))
        deleted = 0
        for table in (JOB, BAD_LINE):
            some = select(table.c.id).where(table.c.batch_id == batch_id).limit(CHUNK)
            deleted += connection.execute(delete(table).where(table.c.id.in_(some))).rowcount
        return deleted

    @transaction
    def _delete_batch(self, connection: Connection, batch_id: int) -> None:
        connection.execute(delete(LANE).where(LANE.c.batch_id == batch_id))
        connection.execute(delete(BATCH).where(BATCH.c.id == batch_id, BATCH.c.state == "discarded"))

    def collect_abandoned(self, older_than_s: float = 3600.0) -> int:
        """Throw away what a process that died was staging or throwing away, `older_than_s` after its last chunk."""
        unfinished = select(BATCH.c.id).where(
            BATCH.c.state.in_(["staging", "discarded"]), BATCH.c.updated_at < self.clock() - older_than_s
        )
        with reading(self.engine) as connection:
            abandoned = list(connection.execute(unfinished).scalars())
        for batch_id in abandoned:
            with contextlib.suppress(Conflict):  # another dispatcher was quicker
                self.discard(batch_id)
        return len(abandoned)


def _last_bad_line(connection: Connection, batch_id: int) -> int | None:
    """The chunk before may have ended in the middle of what is wrong with one line."""
    line = select(BAD_LINE.c.line).where(BAD_LINE.c.batch_id == batch_id).order_by(BAD_LINE.c.id.desc()).limit(1)
    return connection.execute(line).scalar()


def _still_staging(connection: Connection, batch_id: int, now: float, *, jobs: int = 0, bad_lines: int = 0) -> str:
    """Count the chunk in, show that the stager lives, and lock the batch against being discarded meanwhile."""
    counts = {"jobs": BATCH.c.jobs + jobs, "bad_lines": BATCH.c.bad_lines + bad_lines, "updated_at": now}
    staged = update(BATCH).where(BATCH.c.id == batch_id, BATCH.c.state == "staging").values(counts)
    project_id = connection.execute(staged.returning(BATCH.c.project_id)).scalar()
    if project_id is None:
        raise Conflict(f"batch {batch_id} is not being staged any more", fix="submit it again")
    return str(project_id)


def _lanes(
    connection: Connection, project_id: str, batch_id: int, jobs: Sequence[NewJob], now: float
) -> dict[tuple[str, int], int]:
    wanted = {(job.spec.shape_key, job.priority): job.spec.model for job in jobs}
    common = {"project_id": project_id, "batch_id": batch_id, "open": True, "created_at": now}
    rows = [
        common | {"model": model, "shape_key": key, "priority": priority} for (key, priority), model in wanted.items()
    ]
    connection.execute(upsert(connection, LANE).on_conflict_do_nothing(), rows)
    keys, priorities = ({lane[part] for lane in wanted} for part in (0, 1))
    mine = select(LANE.c.shape_key, LANE.c.priority, LANE.c.id).where(LANE.c.batch_id == batch_id)
    found = connection.execute(mine.where(LANE.c.shape_key.in_(keys), LANE.c.priority.in_(priorities)))
    return {(key, priority): id_ for key, priority, id_ in found}


def _parents(connection: Connection, project_id: str, ids: Sequence[int]) -> dict[int, State]:
    """The states of jobs of other batches, held still until this chunk is committed, so that no release is missed."""
    query = select(JOB.c.id, JOB.c.state).join(BATCH, BATCH.c.id == JOB.c.batch_id)
    query = query.where(JOB.c.project_id == project_id, BATCH.c.state.not_in(["staging", "discarded"]))
    found: dict[int, State] = {}
    for some in moves.chunks(sorted(set(ids))):
        rows = connection.execute(query.where(JOB.c.id.in_(some)).order_by(JOB.c.id).with_for_update(read=True, of=JOB))
        found |= {id_: State(state) for id_, state in rows}
    if missing := sorted(set(ids) - found.keys()):
        raise NotFound(f"no job {missing[0]} in this project", field="image")
    return found


def _first_state(job: NewJob, parents: dict[int, State]) -> tuple[State, str]:
    if job.parent_job_id is not None:
        return moves.child_of(job.parent_job_id, parents[job.parent_job_id])
    return (State.WAITING, "") if job.parent_name else (State.QUEUED, "")


def _job_row(
    job: NewJob, project_id: str, batch_id: int, lane_id: int, state: State, reason: str, now: float
) -> dict[str, Any]:
    spec = job.spec
    return {
        "project_id": project_id,
        "batch_id": batch_id,
        "lane_id": lane_id,
        "line": job.line,
        "index": job.index,
        "name": job.name,
        "state": str(state),
        "model": spec.model,
        "prompt": spec.prompt,
        "seed": spec.seed,
        "width": spec.width,
        "height": spec.height,
        "steps": spec.steps,
        "guidance": spec.guidance,
        "format": spec.format,
        "edit": spec.edit,
        "priority": job.priority,
        "parent_job_id": job.parent_job_id,
        "parent_name": job.parent_name,
        "upload_id": job.upload_id,
        "attempt": 0,
        "forgiven": 0,
        "not_before": 0.0,
        "reason": reason,
        "created_at": now,
        "updated_at": now,
    }


def _accepted_before(connection: Connection, batch_id: int) -> int:
    state = connection.execute(select(BATCH.c.state).where(BATCH.c.id == batch_id)).scalar()
    if state not in ("open", "paused", "cancelled"):
        raise Conflict(f"batch {batch_id} is not being staged any more", fix="submit it again")
    return batch_id
