"""The FLUX.1 transformer: dev, schnell and Kontext dev, and any smaller configuration of the same shape.

B batch, L image tokens, T text tokens, C channels, D text width, V width of the pooled text; ids have 3 axes.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from actors.flux.blocks import DoubleBlock, Embedder, FinalLayer, SingleBlock
from actors.flux.config import FluxConfig
from actors.flux.rope import rotation, sinusoid

SINUSOID = 256


class Flux(nn.Module):
    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.img_in = nn.Linear(config.in_channels, width)
        self.txt_in = nn.Linear(config.context_in_dim, width)
        self.time_in = Embedder(SINUSOID, width)
        self.vector_in = Embedder(config.vec_in_dim, width)
        self.guidance_in = Embedder(SINUSOID, width) if config.guidance_embed else None
        self.double_blocks = nn.ModuleList(DoubleBlock(config) for _ in range(config.depth))
        self.single_blocks = nn.ModuleList(SingleBlock(config) for _ in range(config.depth_single_blocks))
        self.final_layer = FinalLayer(config)

    def forward(
        self,
        img_BLC: Tensor,
        img_ids_BL3: Tensor,
        txt_BTD: Tensor,
        txt_ids_BT3: Tensor,
        timesteps_B: Tensor,
        y_BV: Tensor,
        guidance_B: Tensor | None,
    ) -> Tensor:
        """The velocity of every image token; times run from 1 (noise) to 0 (picture)."""
        img = self.img_in(img_BLC)
        txt = self.txt_in(txt_BTD)
        vec = self.condition(timesteps_B, y_BV, guidance_B, img.dtype)
        ids_BL3 = torch.cat((txt_ids_BT3, img_ids_BL3), dim=1)
        turn = rotation(ids_BL3, self.config.axes_dim, self.config.theta)
        for double in self.double_blocks:
            img, txt = double(img, txt, vec, turn)
        both = torch.cat((txt, img), dim=1)
        for single in self.single_blocks:
            both = single(both, vec, turn)
        velocity: Tensor = self.final_layer(both[:, txt.shape[1] :], vec)
        return velocity

    def condition(self, timesteps_B: Tensor, y_BV: Tensor, guidance_B: Tensor | None, dtype: torch.dtype) -> Tensor:
        # Thousands are multiplied in float32: bfloat16 would turn 973.1 into 972 and guidance 3500 into 3504.
        vec: Tensor = self.time_in(sinusoid(1000 * timesteps_B.float()).to(dtype))
        if self.guidance_in is not None:
            if guidance_B is None:
                raise ValueError("this model embeds guidance: give one value for each picture")
            vec = vec + self.guidance_in(sinusoid(1000 * guidance_B.float()).to(dtype))
        vec = vec + self.vector_in(y_BV)
        return vec


def compile_blocks(flux: Flux, backend: str | Callable[..., object] = "inductor") -> None:
    """Compile block by block: every block of a kind shares one graph, so that a start takes seconds, not minutes."""
    for block in (*flux.double_blocks, *flux.single_blocks):
        block.compile(fullgraph=True, backend=backend)
