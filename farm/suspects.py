"""Jobs that meet what looks like an outage again and again while others get through: it is no outage, it is they."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from farm.errors import Fault
from farm.job import CAUSES, OF_MODEL, Cause, Payer

# What one job may bring about by itself: its file ends whatever opens it, or the signer dies of it.
SUSPICIOUS = frozenset({Cause.OVERLOADED, Cause.SIGNER_FAILED})
# What everyone needs, so that others who get through tell something. The other suspicions end nothing.
SHARED = frozenset(cause for cause in Cause if CAUSES[cause] is Payer.ENVIRONMENT) - OF_MODEL - {Cause.LEASE_LOST}
STRIKES = 5
LONGEST_S = 300.0
KEPT = 10_000  # jobs remembered: in a long outage many are met that end elsewhere


@dataclass(slots=True)
class Met:
    times: int
    through: int  # how many jobs had got through by the last time


class Suspects:
    """Of one dispatcher, in memory: one that starts anew begins to count anew. Several threads tell."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.through = 0
        self.met: dict[tuple[int, Cause], Met] = {}

    def judge(self, job_id: int, fault: Fault) -> tuple[Fault, int]:
        """The fault that is to be paid for, and how many times it met this job while others got through between each
        two: an outage counts once, however often it is met."""
        if fault.cause not in SHARED:
            return fault, 1
        with self.lock:
            met = self.met.pop((job_id, fault.cause), Met(0, -1))
            if met.through < self.through:
                met = Met(met.times + 1, self.through)
            if met.times >= STRIKES and fault.cause in SUSPICIOUS:
                words = f"{STRIKES} times, while others got through: {fault.cause}: {fault.detail}"
                return Fault(Cause.POISON, words), met.times
            self.met[job_id, fault.cause] = met
            if len(self.met) > KEPT:
                del self.met[next(iter(self.met))]
        return fault, met.times

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
