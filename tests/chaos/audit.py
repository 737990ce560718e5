"""What must hold of the database once everything is settled. Each function returns what it found wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

from sqlalchemy import Engine, func, select

from farm.db import reading
from farm.insights import Insights
from farm.job import MAX_GANGS, UNSETTLED, Cause, State
from farm.tables import ARTIFACT, BATCH, EVENT, JOB, JOB_FAULT, VERDICT

ENDINGS = frozenset({State.PUBLISHED, State.HELD, State.BLOCKED, State.CANCELLED, State.FAILED})


def audit(engine: Engine, accepted: dict[int, int]) -> list[str]:
    """`accepted`: what the API answered, batch by jobs."""
    return [
        *conservation(engine, accepted),
        *(f"job {job} has not ended" for job in under_way(engine)),
        *endings(engine),
        *failures(engine),
        *publications(engine),
    ]


def conservation(engine: Engine, accepted: dict[int, int]) -> list[str]:
    insights = Insights(engine)
    with reading(engine) as connection:
        there = {int(row.id) for row in connection.execute(select(BATCH.c.id).where(BATCH.c.state == "open"))}
    wrong = [f"batch {batch} was accepted and is not there" for batch in accepted.keys() - there]
    wrong += [f"batch {batch} is there and was not accepted" for batch in there - accepted.keys()]
    for batch in accepted.keys() & there:
        found = insights.conservation(batch)
        if not found["holds"] or found["accepted"] != accepted[batch]:
            wrong.append(f"batch {batch}: {accepted[batch]} accepted, but {found}")
    return wrong


def under_way(engine: Engine) -> list[int]:
    """Jobs that have still to end. The child of a held picture waits for a person, as it should."""
    parent = JOB.alias()
    held = (JOB.c.state == str(State.WAITING)) & (parent.c.state == str(State.HELD))
    query = select(JOB.c.id).outerjoin(parent, parent.c.id == JOB.c.parent_job_id)
    query = query.where(JOB.c.state.in_([str(state) for state in UNSETTLED]), func.coalesce(held, False).is_(False))
    return [row.id for row in _rows(engine, query.order_by(JOB.c.id))]


def endings(engine: Engine) -> list[str]:
    """Each job that has ended did so once: one event says so, and it is the state it is in."""
    with reading(engine) as connection:
        states = {row.id: row.state for row in connection.execute(select(JOB.c.id, JOB.c.state))}
        kinds = [str(state) for state in ENDINGS]
        said: dict[int, Counter[str]] = {job: Counter() for job in states}
        for row in connection.execute(select(EVENT.c.job_id, EVENT.c.kind).where(EVENT.c.kind.in_(kinds))):
            said[row.job_id][row.kind] += 1
    expected = {job: {state: 1} if state in ENDINGS else {} for job, state in states.items()}
    return [
        f"job {job} is {states[job]}, its events say {dict(said[job])}" for job in states if said[job] != expected[job]
    ]


def failures(engine: Engine) -> list[str]:
    """We kill gangs, so a job may meet three dead ones; for anything else it may not fail."""
    wrong = []
    for job in _rows(engine, select(JOB.c.id, JOB.c.reason).where(JOB.c.state == str(State.FAILED))):
        met = _rows(engine, select(JOB_FAULT.c.cause, JOB_FAULT.c.gang).where(JOB_FAULT.c.job_id == job.id))
        killed = {row.gang for row in met if row.cause == str(Cause.GANG_DIED)}
        if len(killed) < MAX_GANGS:
            wrong.append(f"job {job.id} failed: {job.reason}; it met {[(row.cause, row.gang) for row in met]}")
    return wrong


def publications(engine: Engine) -> list[str]:
    """What is shown was drawn, judged and signed by the attempt that the job ended with, and by no other."""
    shown = (
        select(
            JOB.c.id,
            JOB.c.attempt,
            JOB.c.artifact_id,
            JOB.c.verdict_id,
            ARTIFACT.c.job_id.label("artifact_job"),
            ARTIFACT.c.verdict_id.label("artifact_verdict"),
            ARTIFACT.c.frame_sha256,
            ARTIFACT.c.verified_at,
            VERDICT.c.attempt.label("judged"),
            VERDICT.c.subject,
        )
        .select_from(JOB)
        .outerjoin(ARTIFACT, ARTIFACT.c.id == JOB.c.artifact_id)
        .outerjoin(VERDICT, VERDICT.c.id == ARTIFACT.c.verdict_id)
        .where(JOB.c.state.in_([str(State.PUBLISHED), str(State.HELD)]))
    )
    return [f"job {row.id}: {dict(row._mapping)}" for row in _rows(engine, shown) if not _sound(row)]


def _sound(row: Any) -> bool:
    ours = row.artifact_job == row.id and row.artifact_verdict == row.verdict_id
    return bool(ours and row.judged == row.attempt and row.subject == row.frame_sha256 and row.verified_at)


def _rows(engine: Engine, query: Any) -> Collection[Any]:
    with reading(engine) as connection:
        return connection.execute(query).all()
