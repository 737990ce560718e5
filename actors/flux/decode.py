"""The last stage: latents to pixels.

B pictures, L image tokens, C channels, H rows, W columns.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from actors.flux import latents
from actors.flux.jobs import Pixels, finite
from actors.flux.vae import AutoEncoder

PREVIEW = 32


class Decoder:
    def __init__(self, vae: AutoEncoder, device: torch.device | str, tile_above: int = 1_400_000) -> None:
        """Pictures of more pixels than `tile_above` are decoded in tiles."""
        self.vae, self.device, self.tile_above = vae, torch.device(device), tile_above

    @torch.no_grad()
    def decode(self, latent_BLC: Tensor, width: int, height: int) -> list[Pixels]:
        """One picture at a time: memory is that of one, and a batch decodes to what its members do alone."""
        decode = self.decode_tiles if self.in_tiles(width, height) else self.vae.decode
        pictures = [decode(latent) for latent in torch.split(self.grid(latent_BLC, width, height), 1)]
        finite(pictures, "picture")
        # Sizes that are no multiple of a patch were rounded up; the job gets what it asked for.
        return [latents.to_pixels(rgb)[0, :height, :width].numpy() for rgb in pictures]

    @torch.no_grad()
    def draw(self, clean_BLC: Tensor, width: int, height: int) -> list[Pixels]:
        """A pixel for each latent, decoded from at most `PREVIEW` latents a side: a fraction of the whole decode."""
        latent_BCHW = self.grid(clean_BLC, width, height)
        rows, columns = latent_BCHW.shape[2:]
        shrink = max(1.0, max(rows, columns) / PREVIEW)
        few = F.interpolate(latent_BCHW, (round(rows / shrink), round(columns / shrink)), mode="area")
        rgb_B3HW = torch.cat([self.vae.decode(latent) for latent in torch.split(few, 1)])
        return list(latents.to_pixels(F.interpolate(rgb_B3HW.float(), (rows, columns), mode="area")).numpy())

    def grid(self, latent_BLC: Tensor, width: int, height: int) -> Tensor:
        """In one memory layout whatever the tokens came in: convolutions round otherwise in another."""
        grid = latents.unpack(latent_BLC, height, width, self.vae.config.compression)
        return grid.to(self.device, self.vae.dtype).contiguous()

    def in_tiles(self, width: int, height: int) -> bool:
        return width * height > self.tile_above

    def decode_tiles(self, latent_BCHW: Tensor) -> Tensor:
        return self.vae.decode_tiled(latent_BCHW)
