"""What a confirmed block does to the jobs beside it, and many of them to their batch, where the policy says so.

The jobs beside one are the other pictures of its line, and those it was edited from in its batch. A person sees them:
what is published is held, and what is still to come is held when it comes, whatever the gate says of it. What a person
has approved already stands.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, func, select, update

from farm import audit, events, moves
from farm.db import upsert
from farm.job import State
from farm.moves import Move
from farm.ports import Outcome, Stage
from farm.tables import BATCH, DECISION, DOUBTED, JOB, POLICY, VERDICT

BESIDE = 64  # pictures of one line, at most; a line's jobs follow one another within their batch
DEEPEST = 100  # edits of edits
PAGE = 1000  # verdicts looked at together
FARTHEST = 20 * PAGE  # of the whole farm: what was judged before is too long ago to make a spike
PAUSABLE = (State.WAITING, State.QUEUED)  # what is drawn already ends
COMING = (State.WAITING, State.QUEUED, State.LEASED)
BLOCKS = "it was blocked"
REJECTS = "a person rejected it"


@dataclass(frozen=True, slots=True)
class Spike:
    share: float
    of_last: int
    at_least: int

    def reached(self, blocked: Sequence[bool]) -> bool:
        """By the last judged frames, the newest first."""
        last = blocked[: self.of_last]
        return len(last) >= self.at_least and sum(last) >= self.share * len(last)


@dataclass(frozen=True, slots=True)
class Clauses:
    """What a policy says of this."""

    siblings: str = "leave"
    of_concept: tuple[tuple[str, str], ...] = ()  # those that say something of their own
    spike: Spike | None = None

    def holds(self, concept: str | None) -> bool:
        return dict(self.of_concept).get(concept or "", self.siblings) == "hold"


@lru_cache(maxsize=32)
def clauses_of(document: str) -> Clauses:
    said = json.loads(document)
    own = ((one["name"], one["siblings"]) for one in said.get("concepts") or () if one.get("siblings"))
    spike = said.get("spike")
    return Clauses(said.get("siblings") or "leave", tuple(own), Spike(**spike) if spike else None)


def follow_blocks(connection: Connection, jobs: Collection[int], by: str, why: str, now: float) -> None:
    """Of frames that were blocked, or rejected, in this transaction, by the verdict each job refers to."""
    columns = [JOB.c[name] for name in ("id", "project_id", "batch_id", "line", "parent_job_id")]
    columns += [VERDICT.c.concept, POLICY.c.document]
    judged = (
        select(*columns).join(VERDICT, VERDICT.c.id == JOB.c.verdict_id).join(POLICY, POLICY.c.hash == VERDICT.c.policy)
    )
    frames = judged.where(JOB.c.id.in_(jobs), VERDICT.c.stage == str(Stage.FRAME)).order_by(JOB.c.id)
    batches: dict[int, tuple[str, Spike]] = {}
    for job in connection.execute(frames).all():
        clauses = clauses_of(job.document)
        if clauses.holds(job.concept):
            _hold_beside(connection, job, by, why, now)
        if clauses.spike is not None:
            batches[job.batch_id] = job.project_id, clauses.spike
    for batch_id, (project_id, spike) in sorted(batches.items()):
        _pause_at_spike(connection, project_id, batch_id, spike, by, now)


def _hold_beside(connection: Connection, job: Row[Any], by: str, why: str, now: float) -> None:
    beside = moves.lock(connection, _beside(connection, job))
    stand = select(DECISION.c.job_id).where(DECISION.c.job_id.in_(beside), DECISION.c.outcome == "approve")
    approved = set(connection.execute(stand).scalars())
    reason = f"held beside job {job.id}: {why}, and this one is of the same line or what it was edited from"
    listed = [one for one in beside.values() if one.state == State.PUBLISHED and one.id not in approved]
    coming = [one for one in beside.values() if State(one.state) in COMING]
    for one in coming:
        row = {"job_id": one.id, "project_id": one.project_id, "reason": reason, "created_at": now}
        connection.execute(upsert(connection, DOUBTED).values(row).on_conflict_do_nothing())
    moves.apply(connection, [Move(one, State.HELD, reason) for one in listed], now)
    if listed or coming:
        told = {"held": [one.id for one in listed], "coming": [one.id for one in coming]}
        audit.append(connection, job.project_id, by, "hold beside", f"job {job.id}", now, **told)


def _beside(connection: Connection, job: Row[Any]) -> set[int]:
    mine = select(JOB.c.id, JOB.c.line).where(JOB.c.batch_id == job.batch_id)
    later = mine.where(JOB.c.id > job.id).order_by(JOB.c.id).limit(BESIDE - 1)
    earlier = mine.where(JOB.c.id < job.id).order_by(JOB.c.id.desc()).limit(BESIDE - 1)
    found = {row.id for near in (later, earlier) for row in connection.execute(near) if row.line == job.line}
    parent = job.parent_job_id
    above = select(JOB.c.parent_job_id).where(JOB.c.batch_id == job.batch_id)
    for _ in range(DEEPEST):
        row = connection.execute(above.where(JOB.c.id == parent)).first() if parent is not None else None
        if row is None:  # the first of the chain, or of another batch
            break
        found.add(parent)
        parent = row.parent_job_id
    return found


def doubts_of(connection: Connection, jobs: Iterable[int]) -> dict[int, str]:
    """Those of them that a person sees first, and why."""
    found: dict[int, str] = {}
    for some in moves.chunks(jobs):
        rows = connection.execute(select(DOUBTED.c.job_id, DOUBTED.c.reason).where(DOUBTED.c.job_id.in_(some)))
        found |= {row.job_id: row.reason for row in rows}
    return found


def _pause_at_spike(connection: Connection, project_id: str, batch_id: int, spike: Spike, by: str, now: float) -> None:
    batch = connection.execute(select(BATCH).where(BATCH.c.id == batch_id).with_for_update()).one()
    left = select(JOB.c.id).where(JOB.c.batch_id == batch_id, JOB.c.state.in_(PAUSABLE)).limit(1)
    if batch.state != "open" or connection.execute(left).first() is None:
        return
    blocked = _last_judged(connection, batch_id, batch.forgiven, spike.of_last)
    if not spike.reached(blocked):
        return
    reason = (
        f"{sum(blocked)} of its last {len(blocked)} frames were blocked, and {spike.share:.0%} pause a batch:"
        f" look at them, then `farm resume {batch_id}`"
    )
    values = {"state": "paused", "reason": reason, "updated_at": now}
    connection.execute(update(BATCH).where(BATCH.c.id == batch_id).values(values))
    events.append(connection, [events.event(project_id, "batch_paused", now, batch_id=batch_id, reason=reason)])
    audit.append(connection, project_id, by, "pause", f"batch {batch_id}", now, reason=reason)


def _last_judged(connection: Connection, batch_id: int, after: int, at_most: int) -> list[bool]:
    """Whether each was blocked, the newest first. What a rescan says is not of a new frame, and names no gang."""
    found: list[bool] = []
    newest = judged_so_far(connection)
    first = max(after, newest - FARTHEST)
    while newest > first and len(found) < at_most:
        mine: list[ColumnElement[bool]] = [VERDICT.c.id > max(first, newest - PAGE), VERDICT.c.id <= newest]
        mine += [VERDICT.c.stage == str(Stage.FRAME), VERDICT.c.gang != "", JOB.c.batch_id == batch_id]
        query = select(VERDICT.c.outcome).join(JOB, JOB.c.id == VERDICT.c.job_id).where(*mine)
        outcomes = connection.execute(query.order_by(VERDICT.c.id.desc())).scalars()
        found += [outcome == Outcome.BLOCK for outcome in outcomes]
        newest -= PAGE
    return found[:at_most]


def judged_so_far(connection: Connection) -> int:
    """The last verdict there is."""
    return connection.execute(select(func.max(VERDICT.c.id))).scalar() or 0
