"""Jobs that meet what looks like an outage again and again while others get through: it is no outage, it is they.

What may end a job is kept with the job, so that it counts whatever dispatcher meets it next, and outlives each of them;
how long it waits before it is tried again is each dispatcher's own guess.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select

from farm.job import CAUSES, OF_MODEL, Cause, Payer
from farm.tables import ARTIFACT, JOB, JOB_FAULT

# What one job may bring about by itself, and how often it may: its file ends whatever opens it, the signer dies of it,
# or the dispatcher or a node does. Those two are lost for other reasons as well, and take many jobs along.
LOST = {Cause.LEASE_LOST: 10, Cause.NODE_FAILED: 10}
STRIKES = {Cause.OVERLOADED: 5, Cause.SIGNER_FAILED: 5} | LOST
# What everyone needs, so that others who get through tell something.
SHARED = frozenset(cause for cause in Cause if CAUSES[cause] is Payer.ENVIRONMENT) - OF_MODEL - LOST.keys()
LONGEST_S = 300.0
LONELY = 3  # strikes by lost leases from which on two such jobs share no dispatcher: only one of them may be ending it
LOST_S, LONGEST_LOST_S = 1.0, 60.0
KEPT = 10_000  # jobs remembered: in a long outage many are met that end elsewhere


def keep(connection: Connection, job: Row[Any], cause: Cause, detail: str, gang: str | None, now: float) -> None:
    row = {"project_id": job.project_id, "job_id": job.id, "attempt": job.attempt, "cause": str(cause)}
    row |= {"payer": str(CAUSES[cause]), "gang": gang, "detail": detail, "created_at": now}
    connection.execute(insert(JOB_FAULT), [row])


def struck(connection: Connection, job: Row[Any], cause: Cause, detail: str, now: float) -> str:
    """Keep what the job met, once for each time that others got through since the last: an outage counts once, however
    often it is met. The words with which it has failed, or "" while it may be tried again."""
    mine = (JOB_FAULT.c.job_id == job.id, JOB_FAULT.c.cause == str(cause), JOB_FAULT.c.attempt > job.forgiven)
    met, last = connection.execute(select(func.count(), func.max(JOB_FAULT.c.created_at)).where(*mine)).one()
    newest = select(ARTIFACT.c.created_at).order_by(ARTIFACT.c.id.desc()).limit(1)
    through = connection.execute(newest).scalar()
    if met and (through is None or through <= last):
        return ""
    keep(connection, job, cause, detail, None, now)
    over = met + 1 >= STRIKES[cause]
    return f"{met + 1} times, while others got through: {cause}" if over else ""


def lonely(connection: Connection, jobs: Iterable[int]) -> set[int]:
    """Who of these may be what ends dispatchers."""
    lost = (JOB_FAULT.c.cause == str(Cause.LEASE_LOST), JOB_FAULT.c.attempt > JOB.c.forgiven)
    query = select(JOB_FAULT.c.job_id).join(JOB, JOB.c.id == JOB_FAULT.c.job_id).where(*lost)
    often = query.group_by(JOB_FAULT.c.job_id).having(func.count() >= LONELY)
    return set(connection.execute(often.where(JOB_FAULT.c.job_id.in_(list(jobs)))).scalars())


def lost_tries(connection: Connection, job: Row[Any]) -> int:
    """How many attempts it had since its lease was first lost, that one included: it is kept whenever it happens."""
    mine = (JOB_FAULT.c.job_id == job.id, JOB_FAULT.c.cause == str(Cause.LEASE_LOST))
    first = select(func.min(JOB_FAULT.c.attempt)).where(*mine, JOB_FAULT.c.attempt > job.forgiven)
    return int(job.attempt - connection.execute(first).scalar_one() + 1)


def lost_pause_s(tries: int) -> float:
    """Of a job whose lease was lost: none the first time; then ever longer, and not always together with another."""
    longest = min(LOST_S * 2.0 ** min(tries - 2, 64), LONGEST_LOST_S)
    return random.uniform(1, 2) * longest if tries > 1 else 0.0  # noqa: S311


@dataclass(slots=True)
class Met:
    times: int
    through: int  # how many jobs had got through by the last time


class Suspects:
    """Of one dispatcher, in memory. Several threads tell."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.through = 0
        self.met: dict[tuple[int, Cause], Met] = {}

    def times(self, job_id: int, cause: Cause) -> int:
        """How many times the job has met it, this one included, while others got through between each two."""
        if cause not in SHARED:
            return 1
        with self.lock:
            met = self.met.pop((job_id, cause), Met(0, -1))
            if met.through < self.through:
                met = Met(met.times + 1, self.through)
            self.met[job_id, cause] = met
            if len(self.met) > KEPT:
                del self.met[next(iter(self.met))]
        return met.times

    def passed(self, jobs: Iterable[int]) -> None:
        """These were signed, stored and read back."""
        with self.lock:
            for job_id in jobs:
                self.through += 1
                for cause in SHARED:
                    self.met.pop((job_id, cause), None)


def pause_s(retry_s: float, times: int) -> float:
    """Before a job is tried again: doubled each time it met its trouble while others got through."""
    return min(retry_s * 2.0 ** min(times - 1, 64), max(retry_s, LONGEST_S))
