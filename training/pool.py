"""Scenes and edits with their latents, drawn as training goes and used several times.

C channels, H rows, W columns of latents, L image tokens, K cells of a token.
"""

import random
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from actors.flux.vae import AutoEncoder
from training.checker import PALETTE
from training.edits import Edit, invent_edit
from training.shapes import CANVAS_WEIGHTS, Pixels, Scene, draw, invent
from training.words import seen_sentence

CELL = 4  # pixels a side; a token has 16 cells
KEPT = 100  # batches of one canvas and task
FRESH = 0.12  # the share of batches that are drawn and encoded anew
# What is hard is shown more often than the evaluation asks for it.
TWO_SHAPES = 0.4  # of the scenes
HARD_SPLITS = (60.0, 20.0, 20.0)
HARD_SHAPES = (2.0, 3.0, 2.0, 4.0, 3.0, 3.0)  # a star's corners are learnt last
DRAWN_ON = {canvas: weight**0.6 for canvas, weight in CANVAS_WEIGHTS.items()}
EDIT_WEIGHTS = {"recolour": 3, "background": 1, "shape": 4, "move": 6, "add": 5, "remove": 4}


@dataclass(frozen=True)
class Drawn:
    """A scene or an edit with its latents in bfloat16 and, for each cell of each token, the number of its colour."""

    what: Scene | Edit
    latent_CHW: Tensor
    layout_LK: Tensor
    reference_CHW: Tensor | None

    def sentence(self, rng: random.Random) -> str:
        return self.what.sentence if isinstance(self.what, Edit) else seen_sentence(rng, self.what)


def hard(rng: random.Random, canvas: tuple[int, int], items: int) -> Scene:
    return invent(rng, items, canvas, HARD_SPLITS, HARD_SHAPES)


def layout(picture: Pixels) -> Tensor:
    middles = torch.from_numpy(picture[CELL // 2 :: CELL, CELL // 2 :: CELL].astype(np.float32))
    colours = torch.cdist(middles, torch.from_numpy(PALETTE)[None]).argmin(-1)
    side = 16 // CELL
    return colours.unfold(0, side, side).unfold(1, side, side).flatten(2).flatten(0, 1).to(torch.uint8)


class Pool:
    """Latents by canvas and task; most batches reuse them with new noise and, for scenes, new words."""

    def __init__(self, vae: AutoEncoder, rng: random.Random, tokens: int, device: torch.device) -> None:
        """`tokens` of pictures make a batch."""
        self.vae, self.rng, self.tokens, self.device = vae.to(device), rng, tokens, device
        self.kept: dict[tuple[tuple[int, int], bool], list[Drawn]] = defaultdict(list)

    def batch(self, with_reference: bool) -> list[Drawn]:
        canvas = self.rng.choices(list(DRAWN_ON), list(DRAWN_ON.values()))[0]
        tokens = canvas[0] * canvas[1] // 256
        count = max(4, self.tokens // (tokens * (2 if with_reference else 1) + 24))
        kept = self.kept[canvas, with_reference]
        if len(kept) < 3 * count or self.rng.random() < FRESH:
            kept += self.fresh(canvas, with_reference, count)
            del kept[: -KEPT * count]
            return kept[-count:]
        return self.rng.sample(kept, count)

    def fresh(self, canvas: tuple[int, int], with_reference: bool, count: int) -> list[Drawn]:
        if not with_reference:
            scenes = [hard(self.rng, canvas, 2 if self.rng.random() < TWO_SHAPES else 1) for _ in range(count)]
            return [Drawn(scene, *parts, None) for scene, parts in zip(scenes, self.encode(scenes), strict=True)]
        kinds = self.rng.choices(list(EDIT_WEIGHTS), list(EDIT_WEIGHTS.values()), k=count)
        edits = [invent_edit(self.rng, kind, canvas, scene=hard) for kind in kinds]
        after, before = self.encode([e.after for e in edits]), self.encode([e.before for e in edits])
        return [Drawn(e, *parts, r) for e, parts, (r, _) in zip(edits, after, before, strict=True)]

    @torch.no_grad()
    def encode(self, scenes: list[Scene]) -> list[tuple[Tensor, Tensor]]:
        """Latents and layouts."""
        pictures = [draw(scene) for scene in scenes]
        rgb = torch.from_numpy(np.stack(pictures)).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.autocast(self.device.type, torch.bfloat16):
            latents = self.vae.encode(rgb).bfloat16()
        return [(z, layout(picture).to(self.device)) for z, picture in zip(latents, pictures, strict=True)]
