"""What is worth knowing of a pool beside where its gangs would lie: fp8, streaming, unknown memory, threads. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from actors.flux.names import Part
from actors.flux.quant import fp8_of
from actors.flux.shapes import T5Sizes
from actors.flux.sharding import shares
from actors.placing import Node, has_labels
from actors.plan import precision_of
from actors.weighing import Stored, gigabytes
from farm.config import PoolSpec


def notes_on(pool: PoolSpec, stored: Stored, nodes: Iterable[Node], offload: str, least: int, whole: int) -> list[str]:
    """What is no reason against it. Of each GPU `least` is needed, and `whole` for nothing to stream."""
    nodes = [node for node in nodes if has_labels(node, pool.labels)]
    notes = [*fp8_notes(pool, stored), *few_threads(pool, nodes)]
    t5 = stored.parts.get("t5")
    if t5 is not None and isinstance(t5.sizes, T5Sizes) and not shares(t5.sizes, pool.tensor):
        notes.append(f"{pool.tensor} ranks cannot share the {t5.sizes.num_heads} heads of T5: each has it whole")
    known = [node.gpu_bytes for node in nodes if node.gpu_bytes]
    if whole and (offload == "always" or (offload == "auto" and known and max(known) < whole)):
        notes.append(f"blocks stream from the memory of the host: whole, a rank needs {gigabytes(whole)}")
    if unknown := [node.name for node in nodes if node.gpus and not node.gpu_bytes and whole]:
        where = ", ".join(unknown[:3]) + f" and {len(unknown) - 3} more" * (len(unknown) > 3)
        streams = f", or {gigabytes(whole)} for blocks not to stream" if least < whole else ""
        notes.append(f"the GPU memory of {where} is not known: a rank needs {gigabytes(least)}{streams}")
    return notes


def few_threads(pool: PoolSpec, nodes: Sequence[Node]) -> list[str]:
    threads, most = max(1, int(pool.cpus)), max((node.cpus for node in nodes), default=0)
    if pool.device != "cpu" or most < 4 * pool.cpus * pool.tensor:
        return []
    says = f"a rank computes with {threads} thread{'s' * (threads > 1)}"
    return [f"{says}, as many as its cpus, and there is a node of {most:g} CPUs"]


def in_fp8(pool: PoolSpec, stored: Stored) -> list[Part]:
    return [part for part, report in stored.parts.items() if report.keeps(fp8_of(pool.precision, pool.device))]


def fp8_notes(pool: PoolSpec, stored: Stored) -> list[str]:
    kept, computed = in_fp8(pool, stored), precision_of(pool.precision, pool.device)
    has = {part: "fp8" in report.precision or bool(report.fp8) for part, report in stored.parts.items()}
    said = {
        f"in fp8 in the files and in memory, widened to {computed} for each product": [p for p in kept if has[p]],
        f"in fp8 in the files, widened to {computed} when read": [p for p in has if has[p] and p not in kept],
        "rounded to fp8 when read": [p for p in kept if not has[p]],
    }
    return [f"{' and '.join(parts)} {what}" for what, parts in said.items() if parts]
