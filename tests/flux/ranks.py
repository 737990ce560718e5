"""Processes that form a gloo group and do one thing together: what tests of sharding run on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from actors.flux.exchange import GangShape, Seat, take_seat

Deed = Callable[[Seat], Any]


def together(folder: Path, deeds: Sequence[tuple[GangShape, Deed]]) -> list[list[Any]]:
    """What each rank got, for each deed. The processes start once: that is most of the time."""
    ranks = max(shape.ranks for shape, _ in deeds)
    mp.spawn(_member, (folder, list(deeds)), nprocs=ranks)  # type: ignore[attr-defined, no-untyped-call]
    return [
        [torch.load(folder / f"{number}.{rank}", weights_only=True) for rank in range(shape.ranks)]
        for number, (shape, _) in enumerate(deeds)
    ]


def _member(rank: int, folder: Path, deeds: list[tuple[GangShape, Deed]]) -> None:
    torch.set_num_threads(1)
    for number, (shape, deed) in enumerate(deeds):
        if rank >= shape.ranks:
            continue
        where = f"file://{folder / f'meeting.{number}'}"
        dist.init_process_group("gloo", init_method=where, rank=rank, world_size=shape.ranks)
        try:
            torch.save(deed(take_seat(shape)), folder / f"{number}.{rank}")
        finally:
            dist.destroy_process_group()
