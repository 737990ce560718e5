"""What every change of a job's state brings with it: the guard, the lane, the children, the event. All inside the
caller's transaction.

Rows are locked jobs first, in the order of their ids, then lanes; the rare deadlock between a parent and its children
is tried again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
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
    Select,
    String,
    Update,
    bindparam,
    cast,
    column,
    delete,
    func,
    literal,
    literal_column,
    select,
    update,
)
from sqlalchemy.types import TypeEngine

from farm import events
from farm.db import as_json, upsert
from farm.errors import Conflict
from farm.job import CANCELS_CHILD, RELEASES_CHILD, REVIVES_CHILD, State, may_move
from farm.tables import BATCH, JOB, LANE, UNFOLLOWED

UNFINISHED = (State.WAITING, State.QUEUED, State.LEASED)
CHUNK = 1000  # the most rows one statement names
FOLLOWING = 500  # children that one transaction takes along, so that heartbeats get their turn
ROUND = 10  # moves for which a further generation counts, were it one child
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
    "reason",
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
    """Make the moves, and those of the children and their children that follow from them, as far as one short
    transaction goes: for the rest a mark is left, and `follow` makes it. `but` is a batch all of whose jobs the caller
    moves itself."""
    left = FOLLOWING
    while moves:
        _write(connection, moves, now)
        reopen(connection, {move.job.lane_id for move in moves if move.state is State.QUEUED})
        parents = {move.job.id: move.state for move in moves if _is_followed(move)}
        children = _children(connection, parents, left + 1, but=but) if parents else []
        if len(children) > left:
            _mark(connection, parents)
        moves = _following(connection, parents, children[:left])
        left = max(0, left - len(moves) - ROUND)


def follow(connection: Connection, job_id: int, now: float) -> None:
    """Bring the next children of a marked job to where its state, as it is now, wants them."""
    job = lock(connection, [job_id]).get(job_id)
    mark = UNFOLLOWED.c.job_id == job_id
    after = connection.execute(select(UNFOLLOWED.c.after).where(mark).with_for_update()).scalar()
    if after is None:  # somebody else was quicker
        return
    parents = {job_id: State(job.state)} if job else {}
    children = _children(connection, parents, FOLLOWING, after=after)
    moves = _following(connection, parents, children)
    again = any(move.job.state == State.CANCELLED for move in moves)  # they wait now, and may go on from there
    if not children:
        connection.execute(delete(UNFOLLOWED).where(mark))
    elif not again:
        connection.execute(update(UNFOLLOWED).where(mark).values(after=children[-1].id))
    apply(connection, moves, now)


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


def _is_followed(move: Move) -> bool:
    old, new = State(move.job.state), move.state
    decided = new in RELEASES_CHILD or new in CANCELS_CHILD or new in (State.HELD, State.APPROVED)
    return decided or old is State.PUBLISHED or (old, new) in REVIVES_CHILD


def _children(
    connection: Connection, parents: Collection[int], at_most: int, after: int = 0, but: int | None = None
) -> list[Row[Any]]:
    """The first of them that may have to follow, by id, locked; and the batches to which cancelled ones might return,
    which must not be cancelled meanwhile."""
    found: list[Row[Any]] = []
    for some in chunks(sorted(parents)):
        query = select(JOB.c.id, JOB.c.batch_id, JOB.c.state).where(JOB.c.parent_job_id.in_(some), JOB.c.id > after)
        query = query.where(JOB.c.state.in_((*UNFINISHED, State.CANCELLED)))
        query = query if but is None else query.where(JOB.c.batch_id != but)
        found += connection.execute(query.order_by(JOB.c.id).limit(at_most - len(found)))
    batches = {row.batch_id for row in found if row.state == State.CANCELLED}
    if batches:
        connection.execute(_open_batches(batches).with_for_update(read=True))
    return list(lock(connection, (row.id for row in found)).values())


def _open_batches(batches: Collection[int]) -> Select[Any]:
    return select(BATCH.c.id).where(BATCH.c.id.in_(batches), BATCH.c.state != "cancelled").order_by(BATCH.c.id)


def _following(connection: Connection, parents: Mapping[int, State], children: Sequence[Row[Any]]) -> list[Move]:
    """Released, cancelled, or called back, even while they are drawn, because their parent was withdrawn. What was
    cancelled only because of a job that is tried again waits for it again, unless its batch was cancelled since. Those
    that wait on say whether a person is asked first."""
    cancelled = {child.batch_id for child in children if child.state == State.CANCELLED}
    alive = set(connection.execute(_open_batches(cancelled)).scalars()) if cancelled else set()
    following: list[Move] = []
    told: dict[str, list[int]] = {}
    for child in children:
        old, parent = State(child.state), child.parent_job_id
        state, reason = child_of(parent, parents[parent])
        if old is State.CANCELLED:
            undone = {child_of(parent, before)[1] for before, _ in REVIVES_CHILD}
            if state is not State.CANCELLED and child.reason in undone and child.batch_id in alive:
                waits = reason if state is State.WAITING else child_of(parent, State.WAITING)[1]
                following.append(Move(child, State.WAITING, waits))
        elif may_move(old, state) and (old, state) != (State.LEASED, State.QUEUED):
            following.append(Move(child, state, reason))
        elif old is State.WAITING and child.reason != reason:
            told.setdefault(reason, []).append(child.id)
    for reason, ids in told.items():
        connection.execute(update(JOB).where(JOB.c.id.in_(ids)).values(reason=reason))
    return following


def _mark(connection: Connection, parents: Collection[int]) -> None:
    for some in chunks(sorted(parents)):
        having = select(JOB.c.parent_job_id, JOB.c.project_id, literal(0)).where(JOB.c.parent_job_id.in_(some))
        marks = upsert(connection, UNFOLLOWED).from_select(["job_id", "project_id", "after"], having.distinct())
        connection.execute(marks.on_conflict_do_update(index_elements=["job_id"], set_={"after": 0}))


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
