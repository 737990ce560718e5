"""What every change of a job's state brings with it: the guard, the lane, the children, the event. All inside the
caller's transaction.

Rows are locked jobs first, in the order of their ids, then lanes; the rare deadlock between a parent and its children
is tried again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    Connection,
    Double,
    Integer,
    Row,
    String,
    Update,
    bindparam,
    cast,
    column,
    func,
    literal_column,
    select,
    update,
)
from sqlalchemy.types import TypeEngine

from farm import events
from farm.db import as_json
from farm.errors import Conflict
from farm.job import CANCELS_CHILD, RELEASES_CHILD, REVIVES_CHILD, State, may_move
from farm.tables import BATCH, JOB, LANE

UNFINISHED = (State.WAITING, State.QUEUED, State.LEASED)
CHUNK = 1000  # the most rows one statement names
T = TypeVar("T")
NEEDED = {
    "id",
    "project_id",
    "batch_id",
    "lane_id",
    "state",
    "attempt",
    "forgiven",
    "owner",
    "artifact_id",
    "parent_job_id",
}
LOCKED = [column for column in JOB.c if column.name in NEEDED]
LOCK = select(*LOCKED).where(JOB.c.id.in_(bindparam("ids", expanding=True))).order_by(JOB.c.id).with_for_update()


@dataclass(frozen=True, slots=True)
class Move:
    """One job, as it was locked, and what becomes of it."""

    job: Row[Any]
    state: State
    reason: str = ""
    not_before: float = 0.0
    forgiven: int | None = None
    verdict_id: int | None = None
    artifact_id: int | None = None


def is_state(state: State) -> Any:
    """Spelled out, not bound: only so does either database use an index of the jobs in that state."""
    return JOB.c.state == literal_column(f"'{state}'")


def chunks(items: Iterable[T], size: int = CHUNK) -> Iterator[list[T]]:
    many = list(items)
    return (many[start : start + size] for start in range(0, len(many), size))


def lock(connection: Connection, ids: Iterable[int]) -> dict[int, Row[Any]]:
    locked: dict[int, Row[Any]] = {}
    for some in chunks(sorted(set(ids))):
        rows = connection.execute(LOCK, {"ids": some})
        locked |= {row.id: row for row in rows}
    return locked


# What a move sets, by the names that `_values` gives them.
GIVEN: dict[str, TypeEngine[Any]] = {
    "job": BigInteger(),
    "at_attempt": Integer(),
    "old": String(),
    "new": String(),
    "why": String(),
    "due": Double(),
    "pardon": Integer(),
    "verdict": BigInteger(),
    "artifact": BigInteger(),
    "at": Double(),
}


def _statement(given: Callable[[str], ColumnElement[Any]]) -> Update:
    kept = {"forgiven": "pardon", "verdict_id": "verdict", "artifact_id": "artifact"}
    return (
        update(JOB)
        .where(JOB.c.id == given("job"), JOB.c.attempt == given("at_attempt"), JOB.c.state == given("old"))
        .values(state=given("new"), reason=given("why"), not_before=given("due"), updated_at=given("at"))
        .values(owner=None, lease_expires_at=None)
        .values({name: func.coalesce(given(new), JOB.c[name]) for name, new in kept.items()})
    )


MOVE_ONE = _statement(lambda name: bindparam(name, type_=GIVEN[name]))
# PostgreSQL takes the whole group in one statement, each row still guarded by itself.
_GROUP = (
    func.json_to_recordset(cast(bindparam("rows", type_=String()), JSON))
    .table_valued(*(column(name, kind) for name, kind in GIVEN.items()))
    .render_derived(name="given", with_types=True)
)
MOVE_ALL = _statement(lambda name: _GROUP.c[name])


def apply(connection: Connection, moves: Sequence[Move], now: float, but: int | None = None) -> None:
    """Make the moves, and those of the children and their children that follow from them; `but` is a batch all of whose
    jobs the caller moves itself."""
    while moves:
        _write(connection, moves, now)
        reopen(connection, {move.job.lane_id for move in moves if move.state is State.QUEUED})
        _tell_children(connection, moves)
        moves = [*_children(connection, moves, but), *_revived(connection, moves)]


def _write(connection: Connection, moves: Sequence[Move], now: float) -> None:
    for move in moves:
        if not may_move(State(move.job.state), move.state):
            raise Conflict(f"job {move.job.id} is {move.job.state} and cannot become {move.state}")
    rows = [_values(move, now) for move in moves]
    if connection.dialect.name == "sqlite":
        done = connection.execute(MOVE_ONE, rows)
    else:
        done = connection.execute(MOVE_ALL, {"rows": as_json(rows)})
    if done.rowcount != len(moves):
        raise Conflict(f"{len(moves) - done.rowcount} of {len(moves)} jobs changed under a lock")
    events.append(connection, (_event(move, now) for move in moves))


def _values(move: Move, now: float) -> dict[str, Any]:
    job = move.job
    return {
        "job": job.id,
        "at_attempt": job.attempt,
        "old": job.state,
        "new": str(move.state),
        "why": move.reason,
        "due": move.not_before,
        "pardon": move.forgiven,
        "verdict": move.verdict_id,
        "artifact": move.artifact_id,
        "at": now,
    }


def _event(move: Move, now: float) -> dict[str, Any]:
    job = move.job
    more = {"reason": move.reason} if move.reason else {}
    return events.event(
        job.project_id, str(move.state), now, batch_id=job.batch_id, job_id=job.id, attempt=job.attempt, **more
    )


def _children(connection: Connection, moves: Sequence[Move], but: int | None) -> list[Move]:
    """Released, cancelled, or called back, even while they are drawn, because their parent was withdrawn."""
    parents = {
        move.job.id: move.state
        for move in moves
        if move.state in RELEASES_CHILD or move.state in CANCELS_CHILD or move.job.state == State.PUBLISHED
    }
    following: list[Move] = []
    for some in chunks(sorted(parents)):
        unfinished = select(*LOCKED).where(JOB.c.parent_job_id.in_(some), JOB.c.state.in_(UNFINISHED))
        unfinished = unfinished if but is None else unfinished.where(JOB.c.batch_id != but)
        for child in connection.execute(unfinished.order_by(JOB.c.id).with_for_update()):
            state, reason = child_of(child.parent_job_id, parents[child.parent_job_id])
            if may_move(State(child.state), state) and (child.state, state) != (State.LEASED, State.QUEUED):
                following.append(Move(child, state, reason))
    return following


def _revived(connection: Connection, moves: Sequence[Move]) -> list[Move]:
    """What was cancelled only because of a job that is tried again waits for it again, unless its batch was cancelled
    since."""
    parents = {move.job.id: State(move.job.state) for move in moves if (move.job.state, move.state) in REVIVES_CHILD}
    following: list[Move] = []
    for some in chunks(sorted(parents)):
        cancelled = (JOB.c.parent_job_id.in_(some), is_state(State.CANCELLED))
        batches = select(BATCH.c.id).where(BATCH.c.id.in_(select(JOB.c.batch_id).where(*cancelled)))
        batches = batches.where(BATCH.c.state != "cancelled").order_by(BATCH.c.id).with_for_update(read=True)
        alive = JOB.c.batch_id.in_(connection.execute(batches).scalars().all())
        children = select(*[*LOCKED, JOB.c.reason]).where(*cancelled, alive).order_by(JOB.c.id).with_for_update()
        for child in connection.execute(children):
            if child.reason == child_of(child.parent_job_id, parents[child.parent_job_id])[1]:
                following.append(Move(child, *child_of(child.parent_job_id, State.WAITING)))
    return following


def _tell_children(connection: Connection, moves: Sequence[Move]) -> None:
    """What waits for a job says whether a person is asked first."""
    decided = {move.job.id: move.state for move in moves if move.state in (State.HELD, State.APPROVED)}
    for parent_id, state in sorted(decided.items()):
        waiting = update(JOB).where(JOB.c.parent_job_id == parent_id, is_state(State.WAITING))
        connection.execute(waiting.values(reason=child_of(parent_id, state)[1]))


def child_of(parent_id: int, parent: State) -> tuple[State, str]:
    """What a child becomes when its parent is in this state, and why."""
    if parent in RELEASES_CHILD:
        return State.QUEUED, ""
    if parent in CANCELS_CHILD:
        return State.CANCELLED, f"job {parent_id}, which it edits, {CANCELS_CHILD[parent]}"
    if parent is State.HELD:
        return State.WAITING, f"waits for job {parent_id}, which is held for a person"
    return State.WAITING, f"waits for job {parent_id}, which it edits"


def reopen(connection: Connection, lanes: Iterable[int]) -> None:
    """A lane with queued jobs is open. Its row is locked even if it is: a claim may be about to close it."""
    for some in chunks(sorted(set(lanes))):
        rows = connection.execute(
            select(LANE.c.id, LANE.c.open).where(LANE.c.id.in_(some)).order_by(LANE.c.id).with_for_update()
        )
        if closed := [row.id for row in rows if not row.open]:
            connection.execute(update(LANE).where(LANE.c.id.in_(closed)).values(open=True))
