"""What a rank keeps of a model's weights and needs to work in, from headers alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from actors.flux.check import PartReport, is_block, largest_block, report_part, shared, working_room
from actors.flux.names import Part
from actors.flux.shapes import Sizes, T5Sizes
from actors.models import folder_of, locate, parts_there
from farm.config import PoolSpec
from farm.errors import Fault
from farm.ports import ModelCard

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


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


def kept(pool: PoolSpec, stored: Stored) -> dict[Part, dict[str, int]]:
    """The bytes of each tensor that a rank keeps of each part, as far as the files tell."""
    reports = stored.parts.items()
    return {part: held_bytes(one.sizes, pool.tensor, pool.precision) for part, one in reports if one.sizes is not None}


def held_bytes(sizes: Sizes, tensor: int, precision: str) -> dict[str, int]:
    """T5 keeps one of its projections wider where float16 would not hold it."""
    wide = 4 if isinstance(sizes, T5Sizes) and precision == "float16" else BYTES[precision]
    shapes = shared(sizes, tensor)
    return {name: prod(shape) * (wide if ".wo." in name else BYTES[precision]) for name, shape in shapes.items()}


def streaming_bytes(held: Mapping[str, int]) -> int:
    """All that is in no block, and two blocks: the one that is at work, and the next."""
    blocks = {name: nbytes for name, nbytes in held.items() if is_block(name)}
    return sum(held.values()) - sum(blocks.values()) + 2 * largest_block(blocks)


def room_bytes(pool: PoolSpec, stored: Stored) -> int:
    """As `farm models check` counts it, for wider numbers more of it."""
    return working_room(stored.parts) * BYTES[pool.precision] // BYTES["bfloat16"]


def gigabytes(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"
