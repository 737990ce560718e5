"""From jobs to pixels: encode the words and the reference, denoise, decode."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from actors.flux.decode import Decoder
from actors.flux.denoise import Denoiser, Preview
from actors.flux.encode import KONTEXT_SIZES, Embeddings, Encode, Encoder
from actors.flux.jobs import NotFinite, Pixels, RenderJob, Size
from actors.flux.model import Flux
from actors.flux.sampler import SavedLatent
from actors.flux.vae import AutoEncoder

__all__ = ["KONTEXT_SIZES", "NotFinite", "Pixels", "Preview", "RenderJob", "Renderer", "renderer_of"]
EMBEDDINGS = 256 * 2**20  # bytes


class Renderer:
    """The stages that one process holds; the others run elsewhere."""

    def __init__(self, encoder: Encoder | None, denoiser: Denoiser | None, decoder: Decoder | None) -> None:
        self.encoder, self.denoiser, self.decoder = encoder, denoiser, decoder

    def render(
        self,
        jobs: Sequence[RenderJob],
        on_step: Callable[[int, int, Preview], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        resume: SavedLatent | None = None,
        given: Sequence[Any] | None = None,
    ) -> list[Any]:
        """Of jobs that share one shape, what the last stage held here makes of each: an `Encoded`, latents of one
        picture, or its H x W x 3 bytes. `given` is what the stage before the first one held here made of each."""
        if len({job.shape for job in jobs}) != 1:
            raise ValueError("jobs rendered together must share width, height, steps and the reference's size")
        made: list[Any] = list(given or ())
        if self.encoder:
            made = [self.encoder.encode(job) for job in jobs]
        if self.denoiser:
            draw = self.decoder.draw if self.decoder else None
            latent_BLC = self.denoiser.denoise(jobs, made, on_step, cancelled, resume, draw)
            # Each with memory of its own: what is sent elsewhere takes all the memory it lies in along.
            made = list(latent_BLC.split(1)) if self.decoder else [row.cpu().clone() for row in latent_BLC.split(1)]
        if self.decoder:
            made = list(self.decoder.decode(torch.cat(made), jobs[0].width, jobs[0].height))
        return made


def renderer_of(
    flux: Flux,
    vae: AutoEncoder,
    text: Encode,
    device: torch.device | str,
    dtype: torch.dtype,
    *,
    shift: bool = True,
    max_text: int = 512,
    kontext_sizes: tuple[Size, ...] | None = None,
    tile_above: int = 1_400_000,
    embeddings: int = EMBEDDINGS,
) -> Renderer:
    """All stages in one process."""
    return Renderer(
        Encoder(Embeddings(text, embeddings), vae, device, max_text=max_text, kontext_sizes=kontext_sizes),
        Denoiser(flux, vae.config, device, dtype, shift=shift),
        Decoder(vae, device, tile_above),
    )
