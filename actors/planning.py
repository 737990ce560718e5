"""What each pool would take of each rank and where its gangs would lie, without starting anything.

`planned` is pure: what the files hold comes from `actors/weighing.py`, what the nodes have from `actors/nodes.py`.
Ranks that share the matrices lie on one node; those that share an image's tokens each have all of their weights.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from actors.flux.memory import block_bytes, streaming_bytes
from actors.flux.names import Part
from actors.flux.sharding import check
from actors.notes import in_fp8, notes_on
from actors.placing import UNIT, Bundle, Node, Room, has_labels, held_by_host, place, units
from actors.plan import device_of, divided, precision_of
from actors.stages import Stage
from actors.weighing import Stored, gigabytes, kept, needed, room_bytes
from farm.config import GangSpec, PoolSpec, Settings

Spec = TypeVar("Spec", bound=GangSpec)


@dataclass(frozen=True, slots=True)
class Planned:
    pool: str
    stages: list[str]  # that its ranks do
    model: str
    tensor: int
    sequence: int
    ranks: int
    min: int
    max: int
    device: str
    precision: str  # what is computed in
    fp8: list[Part]  # the parts of which linears keep fp8
    weights: str  # the folder
    stored: dict[str, str]  # each part's precision in its files
    rank_bytes: dict[str, int]  # of each part's weights, on each rank
    weight_bytes: int  # their sum
    room_bytes: int  # to work in
    cpus_per_rank: float
    gpus_per_rank: float
    cpus: float  # of a gang
    gpus: float
    labels: dict[str, str]
    gangs: int  # the nodes have room for, at most `max`, were no other pool there
    where: list[list[str]]  # the node of each rank, of the gangs kept warm, or of the first one
    fits: str  # yes; fewer: than are to be kept warm; no
    why: list[str]
    notes: list[str]


def settled(pool: PoolSpec, settings: Settings, gpus_there: bool) -> PoolSpec:
    """With all that it leaves open filled in, as dispatchers and ranks do."""
    device = pool.device or settings.device
    apart = {"encoders": pool.encoders, "decoders": pool.decoders}
    filled = {
        name: _filled(spec, spec.device or device, gpus_there) for name, spec in apart.items() if spec is not None
    }
    return _filled(pool, device, gpus_there).model_copy(update=filled | {"weights": pool.weights or settings.models})


def _filled(spec: Spec, device: str, gpus_there: bool) -> Spec:
    gpus = spec.gpus
    if gpus is None:
        gpus = float(device == "cuda" or (device == "auto" and gpus_there))
    return spec.model_copy(update={"device": device_of(device, gpus), "gpus": gpus})


def planned(
    pools: Sequence[PoolSpec], stored: Mapping[str, Stored], nodes: Iterable[Node], offload: str = "auto"
) -> list[Planned]:
    """A row for each pool, all of them settled, and for each of its stages that run apart. What is kept warm must find
    room beside that of the others."""
    rooms = [Room.of(node) for node in nodes]
    left, rows = rooms, []
    crews = [(stages, crew, needed(stored[pool.called], stages)) for pool in pools for stages, crew in divided(pool)]
    for stages, pool, held in crews:
        bundle = bundle_of(pool, held, offload)
        row = alone(pool, stages, held, bundle, rooms, offload)
        if row.fits == "yes" and pool.min:
            where, left = gangs_of(pool, bundle, left, pool.min)
            others = [crew for _, crew, _ in crews]
            row = replace(row, where=where) if len(where) == pool.min else fewer(row, where, others)
        rows.append(row)
    return rows


def alone(
    pool: PoolSpec, stages: Sequence[Stage], stored: Stored, bundle: Bundle, rooms: Sequence[Room], offload: str
) -> Planned:
    each = {part: sum(held.values()) for part, held in kept(pool, stored).items()}
    why = [*faults_of(pool, stored), *no_room(pool, bundle, rooms)]
    gangs = [] if why else gangs_of(pool, bundle, rooms, pool.max)[0]
    whole = bundle_of(pool, stored, "never")
    return Planned(
        pool=pool.called,
        stages=[str(stage) for stage in stages],
        model=pool.model,
        tensor=pool.tensor,
        sequence=pool.sequence,
        ranks=pool.ranks,
        min=pool.min,
        max=pool.max,
        device=pool.device,
        precision=precision_of(pool.precision, pool.device),
        fp8=in_fp8(pool, stored),
        weights=stored.folder,
        stored={part: report.precision for part, report in stored.parts.items()},
        rank_bytes={str(part): nbytes for part, nbytes in each.items()},
        weight_bytes=sum(each.values()),
        room_bytes=room_bytes(pool, stored),
        cpus_per_rank=pool.cpus,
        gpus_per_rank=pool.gpus or 0.0,
        cpus=pool.cpus * pool.ranks,
        gpus=(pool.gpus or 0.0) * pool.ranks,
        labels=pool.labels,
        gangs=len(gangs),
        where=gangs[:1],
        fits="no" if why else "yes",
        why=why,
        notes=notes_on(pool, stored, [room.node for room in rooms], offload, bundle.gpu_bytes, whole.gpu_bytes),
    )


def gangs_of(pool: PoolSpec, bundle: Bundle, rooms: Sequence[Room], most: int) -> tuple[list[list[str]], list[Room]]:
    """Where so many gangs lie, or as many of them as find room, and what is left then."""
    gangs: list[list[str]] = []
    left = list(rooms)
    while len(gangs) < most and (found := place(bundle, pool.sequence, left)) is not None:
        gangs.append([name for name in found[0] for _ in range(pool.tensor)])
        left = found[1]
    return gangs, left


def fewer(row: Planned, where: list[list[str]], pools: Sequence[PoolSpec]) -> Planned:
    others = ", ".join(pool.called for pool in pools if pool.min and pool.called != row.pool)
    beside = f" beside what is kept warm of {others}" if others else ""
    why = f"{row.min} gangs are to be kept warm, and{beside} the nodes have room for {len(where)}"
    return replace(row, fits="fewer", where=where or row.where, why=[why])


def left_to_the_nodes(pools: Iterable[PoolSpec], settings: Settings) -> set[str]:
    """The rows of those that leave it open what they are drawn on."""
    crews = [crew for pool in pools for _, crew in divided(pool)]
    return {crew.called for crew in crews if crew.gpus is None and (crew.device or settings.device) == "auto"}


def on_cpus_now(row: Planned) -> Planned:
    """Of such a row, on a cluster that may grow."""
    says = "device is auto and no node has a GPU now, so CPUs are asked for: say cuda where nodes with GPUs are to come"
    return replace(row, notes=[*row.notes, says]) if row.device == "cpu" else row


def faults_of(pool: PoolSpec, stored: Stored) -> list[str]:
    """What is wrong with the pool wherever it runs."""
    why = [stored.lacks] if stored.lacks else []
    transformer = stored.parts.get("transformer")
    if transformer is not None and transformer.sizes is not None:
        try:
            check(transformer.sizes, pool.tensor)
        except ValueError as error:
            why.append(str(error))
    return why


def no_room(pool: PoolSpec, bundle: Bundle, rooms: Sequence[Room]) -> list[str]:
    """Why not one gang finds room on the nodes, were nothing else there; empty where one does."""
    if place(bundle, pool.sequence, rooms) is not None:
        return []
    fit = [room for room in rooms if has_labels(room.node, bundle.labels)]
    if not fit:
        asked = ", ".join(f"{name}={value}" for name, value in pool.labels.items())
        return [f"no node has the labels {asked}" if rooms else "there is no node"]
    which = "the nodes with its labels" if pool.labels else "the nodes"
    amounts = (
        ("CPUs", bundle.cpus, [room.cpus for room in fit]),
        ("GPUs", bundle.gpus, [sum(room.gpus) for room in fit]),
    )
    for kind, each, there in amounts:
        if each * pool.sequence > sum(there):
            whole, ranks = f"{each * pool.sequence / UNIT:g} {kind}", f"{pool.ranks} rank{'s' * (pool.ranks > 1)}"
            return [f"a gang of {ranks} needs {whole}, and {which} have {sum(there) / UNIT:g} in all"]
    who = (
        f"the {pool.tensor} tensor ranks of a member must lie on one node and need"
        if pool.tensor > 1
        else "a rank needs"
    )
    for kind, each, there in amounts:
        if each > max(there):
            return [f"{who} {each / UNIT:g} {kind}, and no one of {which} has more than {max(there) / UNIT:g}"]
    return [*no_memory(bundle, who, fit)] or [_side_by_side(pool, bundle, which, rooms)]


def no_memory(bundle: Bundle, who: str, rooms: Sequence[Room]) -> list[str]:
    """What no one of these nodes has, where the memory of them all is known."""
    nodes = [room.node for room in rooms if room.node.gpus or not bundle.gpus]
    most = max((node.gpu_bytes or sys.maxsize for node in nodes), default=0)
    if bundle.gpu_bytes > most:
        return [f"a rank needs a GPU of {gigabytes(bundle.gpu_bytes)}, and the largest has {gigabytes(most)}"]
    most = max(node.host_bytes or sys.maxsize for node in nodes)
    if most < min(held_by_host(node, bundle) for node in nodes):
        what = "memory for the blocks that stream" if bundle.gpu_bytes else "memory"
        return [f"{who} {gigabytes(bundle.host_bytes)} of {what}, and the largest node has {gigabytes(most)}"]
    return []


def _side_by_side(pool: PoolSpec, bundle: Bundle, which: str, rooms: Sequence[Room]) -> str:
    found = next(count for count in range(pool.sequence - 1, -1, -1) if place(bundle, count, rooms) is not None)
    each = f"{bundle.cpus / UNIT:g} CPUs, {bundle.gpus / UNIT:g} GPUs"
    memory = f" and {gigabytes(nbytes)} of memory" if (nbytes := bundle.gpu_bytes or bundle.host_bytes) else ""
    return f"a gang has {pool.sequence} members of {each}{memory}, each on one node; {which} have room for {found}"


def bundle_of(pool: PoolSpec, stored: Stored, offload: str = "never") -> Bundle:
    """One member of a gang. Where blocks may stream, the memory asked for is what is needed then."""
    gpus = pool.gpus or 0.0
    parts = kept(pool, stored).values()
    working = room_bytes(pool, stored) if parts else 0
    whole = sum(sum(held.values()) for held in parts) + working
    bundle = Bundle(units(pool.cpus * pool.tensor), units(gpus * pool.tensor), pool.labels)
    if pool.device == "cpu":
        return replace(bundle, host_bytes=whole * pool.tensor)
    if offload == "never":
        return replace(bundle, gpu_bytes=math.ceil(whole / min(gpus, 1.0)))
    return replace(
        bundle,
        gpu_bytes=math.ceil((sum(map(streaming_bytes, parts)) + working) / min(gpus, 1.0)),
        host_bytes=pool.tensor * sum(sum(block_bytes(held).values()) for held in parts),
        whole_bytes=math.inf if offload == "always" else whole / min(gpus, 1.0),
    )
