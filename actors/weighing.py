"""What a rank keeps of a model's weights and needs to work in, from headers alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from actors.flux.check import room_of
from actors.flux.choice import PartReport, report_part
from actors.flux.names import Part
from actors.flux.quant import fp8_of
from actors.models import folder_of, locate, parts_there
from actors.plan import precision_of
from actors.stages import Stage, parts_of
from farm.config import PoolSpec
from farm.errors import Fault
from farm.ports import ModelCard


@dataclass(frozen=True, slots=True)
class Stored:
    """What the folder of a pool's weights holds of its model, and what is missing there, in words."""

    folder: str
    parts: Mapping[Part, PartReport]
    lacks: str = ""


def stored_in(card: ModelCard, weights: str) -> Stored:
    """From headers alone."""
    folder = Path(weights) if weights else None
    parts = {part: report_part(each) for part, each in parts_there(card, folder).items()}
    try:
        locate(card, folder)
    except Fault as fault:
        return Stored(weights, parts, fault.detail)
    return Stored(str(folder_of(card, folder)), parts)


def needed(stored: Stored, stages: Collection[Stage]) -> Stored:
    """Of what is stored, what a rank that does these stages has need of."""
    parts = parts_of(stages)
    return replace(stored, parts={part: report for part, report in stored.parts.items() if part in parts})


def kept(pool: PoolSpec, stored: Stored) -> dict[Part, dict[str, int]]:
    """The bytes of each tensor that a rank keeps of each part, as far as the files tell."""
    asked, computed = fp8_of(pool.precision, pool.device), precision_of(pool.precision, pool.device)
    return {part: one.held(pool.tensor, computed, asked) for part, one in stored.parts.items() if one.sizes is not None}


def room_bytes(pool: PoolSpec, stored: Stored) -> int:
    return room_of(stored.parts, precision_of(pool.precision, pool.device))


def gigabytes(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"
