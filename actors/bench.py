"""A place whose gangs fail one job after the other is rested, each time for longer. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from farm.errors import Fault
from farm.job import CAUSES, Cause, Payer

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


def may_be_the_gang_s(fault: Fault) -> bool:
    return CAUSES[fault.cause] is Payer.GANG or fault.cause is Cause.RENDER_ERROR


def charged(fault: Fault, benched: bool, again: bool) -> Fault:
    """What it costs once it is known whether others fail there, too, and whether the gang before did on that node."""
    if benched and fault.cause is Cause.RENDER_ERROR:
        return Fault(Cause.GANG_DIED, f"{fault.detail} (as {STRIKES} jobs in a row)", gang=fault.gang)
    if again and CAUSES[fault.cause] is Payer.GANG:
        return Fault(Cause.NODE_FAILED, f"as the gang before it on that node: {fault}", gang=fault.gang)
    return fault
