"""Whether an idle gang still answers: all its ranks are asked now and then, and nobody waits for what they say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from actors.gang import Gang

ASK_S = 10.0
SICK_S = 10.0  # without an answer it is given no job
LOST_S = 60.0  # without an answer it goes


@dataclass(slots=True)
class Pulse:
    asked: list[Any] = field(default_factory=list)  # what is out
    at: float = 0.0  # when it was asked


def felt(pulse: Pulse, one: Gang, now: float) -> float:
    """For how long it has owed an answer. Raises what a rank has died of."""
    import ray

    if pulse.asked:
        done, pulse.asked = ray.wait(pulse.asked, num_returns=len(pulse.asked), timeout=0)
        ray.get(done)
        if pulse.asked:
            return now - pulse.at
    if now - pulse.at >= ASK_S:
        pulse.asked, pulse.at = one.ask(), now
    return 0.0
