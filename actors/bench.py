"""A place whose gangs end one job after the other is rested, each time for longer. Pure."""

from __future__ import annotations

from dataclasses import dataclass

STRIKES = 3  # different jobs in a row
REST_S, LONGEST_S = 30.0, 1800.0


@dataclass(frozen=True, slots=True)
class Form:
    """How the gangs of one place have fared. A picture that was drawn forgives everything."""

    lost: tuple[int, ...] = ()  # the jobs, since the last picture or rest
    rests: int = 0
    until: float = 0.0

    def after(self, job: int, now: float) -> Form:
        """It lost its gang with this job. The same one again is the job's doing, and counted there."""
        lost = self.lost if job in self.lost else (*self.lost, job)
        if len(lost) < STRIKES:
            return Form(lost, self.rests, self.until)
        return Form((), self.rests + 1, now + rest_s(self.rests))

    def rests_at(self, now: float) -> bool:
        return now < self.until


def rest_s(rests: int) -> float:
    return min(REST_S * 2.0 ** min(rests, 16), LONGEST_S)
