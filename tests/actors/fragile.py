"""The farm's own gate over an encoder that fails at pictures of some widths, as encoders do: by an error, by dying, by
hanging, by numbers that are none. At all others it is sound."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import torch

from farm.ports import Frame
from safety.clip import Encoder, load_encoder
from safety.gate import ClipGate
from safety.policy import load

ODD, DEADLY, ENDLESS, BROKEN = 40, 48, 56, 72


class Fragile(Encoder):
    def encode_frames(self, frames: Sequence[Frame]) -> list[torch.Tensor]:
        widths = {frame.width for frame in frames}
        if ODD in widths:
            raise ArithmeticError("an odd picture")
        if DEADLY in widths:
            os._exit(1)
        if ENDLESS in widths:
            time.sleep(600)
        rows = super().encode_frames(frames)
        return [one * float("nan") if frame.width == BROKEN else one for frame, one in zip(frames, rows, strict=True)]


def load_fragile(device: str) -> ClipGate:
    def opened() -> Encoder:
        encoder = load_encoder("", device)
        encoder.__class__ = Fragile
        return encoder

    return ClipGate(load(), opened)
