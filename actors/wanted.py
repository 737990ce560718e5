"""How many gangs a model is to have now, and in which places. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil

from farm.ports import Demand

PAYS = 2.0  # a further gang pays while each has work for so many times what making one ready takes


@dataclass(frozen=True, slots=True)
class Seat:
    """A place as far as it matters here."""

    pool: str
    kept: bool  # warm, asked for or not: one of the pool's min
    stands: bool = False  # a gang that draws, or has its room and will
    lacks_room: bool = False
    rests: bool = False


def wanted(demand: Demand, load_s: float, pace_s: float) -> int:
    """One for any job at all; never more than jobs."""
    if not demand.jobs:
        return 0
    return min(demand.jobs, max(1, ceil(demand.work * pace_s / (PAYS * load_s))))


def chosen(seats: Sequence[Seat], count: int, *, first_alone: bool = False) -> set[int]:
    """Which of a model's places are to have a gang, by number in the list. Those that are kept come first, then the
    pools in their order; where one finds no room, the next is to help out as well. `first_alone`: none beyond what
    stands but a first one."""
    kept = {number for number, seat in enumerate(seats) if seat.kept and not seat.rests}
    taken = {number for number, seat in enumerate(seats) if seat.stands}
    if first_alone:
        count = min(1, count + len(kept))
    else:
        taken |= kept
    having = sum(not seats[number].lacks_room for number in taken)
    left = [number for number, seat in enumerate(seats) if number not in taken and not seat.rests]
    left.sort(key=lambda number: number not in kept)
    for _, pool in groupby(left, key=lambda number: (number in kept, seats[number].pool)):
        for number in list(pool)[: max(0, count - having)]:
            taken.add(number)
            having += not seats[number].lacks_room
    return taken
