"""Bundles on nodes: what a node has left once others lie there, as Ray counts it. Pure."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from farm.lack import Amount, Lack

UNIT = 10_000  # of a CPU or a GPU: Ray counts in no finer parts


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    cpus: float
    gpus: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    gpu_bytes: int | None = None  # memory of one of its GPUs, where that is known
    host_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Bundle:
    """What lies on one node together: the tensor ranks of one member of a gang."""

    cpus: int  # in units
    gpus: int
    labels: Mapping[str, str] = field(default_factory=dict)
    gpu_bytes: int = 0  # that each of its GPUs must have
    host_bytes: int = 0  # of all its ranks, where they run on CPUs or their blocks stream
    whole_bytes: float = math.inf  # of each GPU: with that much nothing streams


@dataclass(frozen=True, slots=True)
class Room:
    """What is left of a node."""

    node: Node
    cpus: int
    gpus: tuple[int, ...]
    host_bytes: int | None

    @classmethod
    def of(cls, node: Node) -> Room:
        return cls(node, units(node.cpus), (UNIT,) * node.gpus, node.host_bytes)


def units(amount: float) -> int:
    return round(amount * UNIT)


def place(bundle: Bundle, count: int, rooms: Sequence[Room]) -> tuple[list[str], list[Room]] | None:
    """The nodes of so many bundles, on as few as can be, and what is left then; None unless all of them fit."""
    names: list[str] = []
    left = list(rooms)
    for index, room in enumerate(rooms):
        while len(names) < count and (less := take(left[index], bundle)) is not None:
            left[index] = less
            names.append(room.node.name)
    return (names, left) if len(names) == count else None


def lacking(bundle: Bundle, count: int, rooms: Mapping[str, Room], taken: Mapping[str, Mapping[str, Amount]]) -> Lack:
    """The room that is not there for so many bundles, beside what gangs have taken of these nodes, were they empty.
    Where some seems to be, others than gangs have it, or parts of GPUs lie apart: so some gang has to go."""
    empty = {home: (room.cpus, sum(room.gpus)) for home, room in rooms.items() if take(room, bundle) is not None}
    used = Lack((bundle.cpus, bundle.gpus), count, dict.fromkeys(empty, (0, 0)), taken).without(taken).left
    left = {home: (cpus - used[home][0], gpus - used[home][1]) for home, (cpus, gpus) in empty.items()}
    lack = Lack((bundle.cpus, bundle.gpus), count, left, taken)
    if not lack.met():
        return lack
    cpus, gpus = (UNIT * UNIT, bundle.gpus - 1) if bundle.gpus else (bundle.cpus - 1, UNIT * UNIT)
    return replace(lack, left={home: (min(one[0], cpus), min(one[1], gpus)) for home, one in left.items()})


def take(room: Room, bundle: Bundle) -> Room | None:
    """The room without what the bundle takes; None where it does not fit."""
    node, gpus = room.node, take_gpus(room.gpus, bundle.gpus)
    if gpus is None or bundle.cpus > room.cpus or not has_labels(node, bundle.labels):
        return None
    if bundle.gpus and node.gpu_bytes is not None and bundle.gpu_bytes > node.gpu_bytes:
        return None
    if room.host_bytes is None:
        return replace(room, cpus=room.cpus - bundle.cpus, gpus=gpus)
    host = room.host_bytes - held_by_host(node, bundle)
    return replace(room, cpus=room.cpus - bundle.cpus, gpus=gpus, host_bytes=host) if host >= 0 else None


def held_by_host(node: Node, bundle: Bundle) -> int:
    """A GPU of which nobody knows the memory is taken to hold all."""
    return 0 if bundle.whole_bytes <= (node.gpu_bytes or sys.maxsize) else bundle.host_bytes


def take_gpus(left: tuple[int, ...], wanted: int) -> tuple[int, ...] | None:
    """Whole GPUs, or a part of the one that has least left of those with enough."""
    if wanted % UNIT:
        enough = [index for index, amount in enumerate(left) if amount >= wanted]
        taken = {min(enough, key=left.__getitem__): wanted} if enough else {}
        return _without(left, taken) if taken else None
    whole = [index for index, amount in enumerate(left) if amount == UNIT][: wanted // UNIT]
    return _without(left, dict.fromkeys(whole, UNIT)) if len(whole) == wanted // UNIT else None


def _without(left: tuple[int, ...], taken: Mapping[int, int]) -> tuple[int, ...]:
    return tuple(amount - taken.get(index, 0) for index, amount in enumerate(left))


def has_labels(node: Node, asked: Mapping[str, str]) -> bool:
    return all(answers(node.labels.get(name), value) for name, value in asked.items())


def answers(value: str | None, asked: str) -> bool:
    """Ray's ways to ask: `a`, `!a`, `in(a, b)`, `!in(a, b)`. A label that is not there is not `a` either."""
    named = asked.removeprefix("!")
    many = named.removeprefix("in(").removesuffix(")").split(",") if named.startswith("in(") else [named]
    return (value in [one.strip() for one in many]) is not asked.startswith("!")
