"""What of a picture's making a process does, and which pools have it done elsewhere. Pure."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum

from actors.flux.names import PARTS, Part


class Stage(StrEnum):
    ENCODE = "encode"
    DENOISE = "denoise"
    DECODE = "decode"


WHOLE = tuple(Stage)
NEEDS: dict[Stage, tuple[Part, ...]] = {
    Stage.ENCODE: ("t5", "clip", "vae"),  # the autoencoder for the picture that is edited
    Stage.DENOISE: ("transformer",),
    Stage.DECODE: ("vae",),
}


def parts_of(stages: Collection[Stage]) -> tuple[Part, ...]:
    needed = {part for stage in stages for part in NEEDS[stage]}
    return tuple(part for part in PARTS if part in needed)
