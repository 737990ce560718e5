"""Scenes and edits with their latents, drawn as training goes and used several times.

C channels, H rows, W columns of latents.
"""

import random
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from actors.flux.vae import AutoEncoder
from training.edits import KINDS, Edit, invent_edit
from training.shapes import CANVAS_WEIGHTS, CANVASES, Scene, draw, invent
from training.words import seen_sentence

TOKENS = 2600  # of pictures, in one worker's batch
FRESH = 0.25  # the share of batches that are drawn and encoded anew


@dataclass(frozen=True)
class Drawn:
    """A scene or an edit with its latents, on CPU in bfloat16."""

    what: Scene | Edit
    latent_CHW: Tensor
    reference_CHW: Tensor | None

    def sentence(self, rng: random.Random) -> str:
        return self.what.sentence if isinstance(self.what, Edit) else seen_sentence(rng, self.what)


class Pool:
    """Latents by canvas and task; most batches reuse them with new noise and, for scenes, new words."""

    def __init__(self, vae: AutoEncoder, rng: random.Random) -> None:
        self.vae, self.rng = vae, rng
        self.kept: dict[tuple[tuple[int, int], bool], list[Drawn]] = defaultdict(list)

    def batch(self, with_reference: bool) -> list[Drawn]:
        canvas = self.rng.choices(CANVASES, CANVAS_WEIGHTS)[0]
        tokens = canvas[0] * canvas[1] // 256
        count = max(4, TOKENS // (tokens * (2 if with_reference else 1) + 24))
        kept = self.kept[canvas, with_reference]
        if len(kept) < 3 * count or self.rng.random() < FRESH:
            kept += self.fresh(canvas, with_reference, count)
            return kept[-count:]
        return self.rng.sample(kept, count)

    def fresh(self, canvas: tuple[int, int], with_reference: bool, count: int) -> list[Drawn]:
        if not with_reference:
            scenes = [invent(self.rng, canvas=canvas) for _ in range(count)]
            return [Drawn(s, z, None) for s, z in zip(scenes, self.encode(scenes), strict=True)]
        edits = [invent_edit(self.rng, self.rng.choice(list(KINDS)), canvas) for _ in range(count)]
        after, before = self.encode([e.after for e in edits]), self.encode([e.before for e in edits])
        return [Drawn(e, z, r) for e, z, r in zip(edits, after, before, strict=True)]

    @torch.no_grad()
    def encode(self, scenes: list[Scene]) -> list[Tensor]:
        rgb = torch.from_numpy(np.stack([draw(scene) for scene in scenes])).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):
            return list(self.vae.encode(rgb).bfloat16())
