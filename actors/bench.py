"""A place whose gangs fail one job after the other is rested, each time for longer. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

STRIKES = 3  # different jobs in a row
REST_S, LONGEST_S = 30.0, 1800.0


@dataclass(frozen=True, slots=True)
class Form:
    """How the gangs of one place have fared. A picture that was drawn forgives everything."""

    lost: tuple[int, ...] = ()  # the jobs, since the last picture or rest
    rests: int = 0
    until: float = 0.0

    def after(self, jobs: Iterable[int], now: float) -> Form:
        """These failed there. The same one again is the job's doing, and counted there."""
        lost = tuple(dict.fromkeys([*self.lost, *jobs]))
        if len(lost) < STRIKES:
            return Form(lost, self.rests, self.until)
        return Form((), self.rests + 1, now + rest_s(self.rests))

    def rests_at(self, now: float) -> bool:
        return now < self.until


def rest_s(rests: int) -> float:
    return min(REST_S * 2.0 ** min(rests, 16), LONGEST_S)
