"""Jobs that meet what looks like an outage again and again while others get through: it is no outage, it is they."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from farm.errors import Fault
from farm.job import Cause

# What one job may bring about by itself: its file ends whatever opens it, or the signer dies of it.
SUSPICIOUS = frozenset({Cause.OVERLOADED, Cause.SIGNER_FAILED})
STRIKES = 5
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
        self.met: dict[int, Met] = {}

    def judge(self, job_id: int, fault: Fault) -> Fault:
        """The fault that is to be paid for: an outage, unless others got through between each two times it met this
        job."""
        if fault.cause not in SUSPICIOUS:
            return fault
        with self.lock:
            met = self.met.pop(job_id, Met(0, -1))
            if met.through < self.through:
                met = Met(met.times + 1, self.through)
            if met.times >= STRIKES:
                return Fault(Cause.POISON, f"{STRIKES} times, while others got through: {fault.cause}: {fault.detail}")
            self.met[job_id] = met
            if len(self.met) > KEPT:
                del self.met[next(iter(self.met))]
        return fault

    def passed(self, jobs: Iterable[int]) -> None:
        """These were signed, stored and read back."""
        with self.lock:
            for job_id in jobs:
                self.through += 1
                self.met.pop(job_id, None)
