"""The second stage: noise to the latents of a picture, steered by what was encoded.

B jobs, C channels, L image tokens, T text tokens, D T5 width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from actors.flux import latents, sampler
from actors.flux.config import VaeConfig
from actors.flux.encode import Encoded
from actors.flux.jobs import Pixels, RenderJob, finite
from actors.flux.model import Flux
from actors.flux.sampler import Condition, Progress, SavedLatent

Draw = Callable[[Tensor, int, int], list[Pixels]]


@dataclass(frozen=True)
class Preview:
    """The batch after one step. Its pictures cost nothing until someone asks for them."""

    progress: Progress
    draw: Callable[[Tensor], list[Pixels]] = field(repr=False)

    def pictures(self) -> list[Pixels]:
        """One small picture per job, a pixel per latent, of what the step was heading for."""
        return self.draw(self.progress.clean_BLC)

    def saved(self) -> SavedLatent:
        return self.progress.saved()


class Denoiser:
    def __init__(
        self, flux: Flux, vae: VaeConfig, device: torch.device | str, dtype: torch.dtype, *, shift: bool = True
    ) -> None:
        """`vae` says what its latents are to be; the autoencoder itself may be elsewhere."""
        self.flux, self.vae, self.device, self.dtype, self.shift = flux, vae, torch.device(device), dtype, shift

    @property
    def batched(self) -> bool:
        """Whether jobs go through the transformer together. Sums take another order in company than alone, and where
        rounding is coarser than float32 the picture shows it: there each job goes by itself."""
        return self.dtype == torch.float32

    @torch.no_grad()
    def denoise(
        self,
        jobs: Sequence[RenderJob],
        encoded: Sequence[Encoded],
        on_step: Callable[[int, int, Preview], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        resume: SavedLatent | None = None,
        draw: Draw | None = None,
    ) -> Tensor:
        job = jobs[0]
        noise_BLC = latents.pack(torch.cat([self.noise(job) for job in jobs]))
        times = sampler.schedule(job.steps, noise_BLC.shape[1], self.shift)
        fresh = SavedLatent(0, job.steps, noise_BLC, (job.width, job.height))
        start = fresh if resume is None else fitting(resume, fresh)

        def drawn(clean_BLC: Tensor) -> list[Pixels]:
            return draw(clean_BLC, job.width, job.height) if draw else []

        def seen(progress: Progress) -> None:
            if on_step is not None:
                on_step(progress.step, progress.total, Preview(progress, drawn))

        latent_BLC = sampler.euler(
            partial(
                sampler.velocity if self.batched else sampler.velocity_alone, self.flux, self.condition(jobs, encoded)
            ),
            start.latent_BLC.to(self.device),
            times,
            size=start.size,
            start=start.step,
            on_step=seen,
            cancelled=cancelled,
        )
        finite(latent_BLC, "latent")
        return latent_BLC

    def condition(self, jobs: Sequence[RenderJob], encoded: Sequence[Encoded]) -> Condition:
        if len({job.shape for job in jobs}) != 1 or len(encoded) != len(jobs) or len({tokens(e) for e in encoded}) != 1:
            raise ValueError("jobs drawn together must share width, height, steps and the reference's size")
        txt_BTD = torch.cat([each.txt_1TD for each in encoded]).to(self.device, self.dtype)
        y_BV = torch.cat([each.y_1V for each in encoded]).to(self.device, self.dtype)
        rows, columns = latents.latent_size(jobs[0].height, jobs[0].width, self.vae.compression)
        ids = latents.image_ids(torch.empty(len(jobs), 0, rows, columns, device=self.device))
        references = [each.reference_1CHW for each in encoded if each.reference_1CHW is not None]
        reference = None
        if references:
            latent_BCHW = torch.cat(references).to(self.device)
            ids = torch.cat((ids, latents.image_ids(latent_BCHW, axis0=1)), dim=1)
            reference = latents.pack(latent_BCHW)
        return Condition(txt_BTD, latents.text_ids(txt_BTD), y_BV, ids, self.guidance(jobs), reference)

    def guidance(self, jobs: Sequence[RenderJob]) -> Tensor | None:
        if not self.flux.config.guidance_embed:
            return None
        return torch.tensor([job.guidance for job in jobs], dtype=torch.float32, device=self.device)

    def noise(self, job: RenderJob) -> Tensor:
        return latents.draw_noise(job.seed, job.height, job.width, self.vae.z_channels, self.vae.compression)


def tokens(encoded: Encoded) -> torch.Size | None:
    return None if encoded.reference_1CHW is None else encoded.reference_1CHW.shape


def fitting(saved: SavedLatent, fresh: SavedLatent) -> SavedLatent:
    theirs, ours = ((each.total, each.size, tuple(each.latent_BLC.shape)) for each in (saved, fresh))
    if theirs != ours:
        raise ValueError(
            "the saved latent has {} steps, size {} and shape {}; ".format(*theirs)
            + "these jobs have {} steps, size {} and shape {}".format(*ours)
        )
    return saved
