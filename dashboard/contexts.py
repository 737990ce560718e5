"""What each page is given, made from the read model. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from farm.job import UNSETTLED, State

# The order in which states stand in a bar: what is done first, what is still to come last.
BAR = (
    State.PUBLISHED,
    State.UNLISTED,
    State.HELD,
    State.APPROVED,
    State.BLOCKED,
    State.REJECTED,
    State.FAILED,
    State.CANCELLED,
    State.LEASED,
    State.QUEUED,
    State.WAITING,
)


@dataclass(frozen=True, slots=True)
class Part:
    state: str
    count: int
    start: float  # in hundredths of the bar
    width: float


def parts(counts: Mapping[str, int]) -> list[Part]:
    """The bar of a batch: one part a state that has jobs, side by side, together 100 wide."""
    total = sum(counts.values())
    done, made = 0, []
    for state in BAR:
        count = counts.get(state, 0)
        if count:
            made.append(Part(state.value, count, 100 * done / total, 100 * count / total))
            done += count
    return made


def summary(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{part.count} {part.state}" for part in parts(counts)) or "no jobs"


def settled(counts: Mapping[str, int]) -> bool:
    return not any(counts.get(state, 0) for state in UNSETTLED)


def word(state: str, counts: Mapping[str, int]) -> str:
    """One word for where a batch stands."""
    if state != "open":
        return state
    return "settled" if settled(counts) else "running"
