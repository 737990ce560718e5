"""From jobs to pixels: encode the words and the reference, denoise, decode.

B jobs, C channels, H rows, W columns, L image tokens.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from actors.flux import latents, sampler
from actors.flux.model import Flux
from actors.flux.sampler import Condition, Progress, SavedLatent
from actors.flux.vae import AutoEncoder

if TYPE_CHECKING:
    from PIL import Image

Pixels = NDArray[np.uint8]
Size = tuple[int, int]  # width, height
PREVIEW = 32
Encode = Callable[[list[str], int], tuple[Tensor, Tensor]]

TALL: tuple[Size, ...] = (
    (672, 1568), (688, 1504), (720, 1456), (752, 1392), (800, 1328), (832, 1248), (880, 1184), (944, 1104),
)  # fmt: skip
KONTEXT_SIZES: tuple[Size, ...] = (*TALL, (1024, 1024), *((height, width) for width, height in reversed(TALL)))
"""What Kontext was trained on: a reference is resized to the one nearest in aspect ratio."""


class NotFinite(ArithmeticError):
    """The model gave NaN or infinity: no picture may be made of it. `jobs` says which of the batch, by place."""

    def __init__(self, what: str, jobs: Sequence[int]) -> None:
        places = ", ".join(str(job) for job in jobs)
        super().__init__(f"NaN or infinity in the {what} of job {places} of this batch: do precision and weights fit?")
        self.jobs = tuple(jobs)


@dataclass(frozen=True)
class RenderJob:
    prompt: str
    seed: int
    width: int
    height: int
    steps: int
    guidance: float
    reference: "Image.Image | None" = None

    @property
    def shape(self) -> tuple[int, int, int, bool]:
        return self.width, self.height, self.steps, self.reference is not None


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


class Renderer:
    def __init__(
        self,
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
    ) -> None:
        """`kontext_sizes` None resizes a reference to its job's own size; pictures of more pixels than `tile_above`
        are decoded in tiles."""
        self.flux, self.vae, self.text = flux, vae, text
        self.device, self.dtype = torch.device(device), dtype
        self.shift, self.max_text, self.kontext_sizes, self.tile_above = shift, max_text, kontext_sizes, tile_above

    def render(
        self,
        jobs: Sequence[RenderJob],
        on_step: Callable[[int, int, Preview], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        resume: SavedLatent | None = None,
    ) -> list[Pixels]:
        """Pictures of H x W x 3 bytes, one for each job; the jobs share one shape."""
        if len({(job.shape, self.reference_size(job)) for job in jobs}) != 1:
            raise ValueError("jobs rendered together must share width, height, steps and the reference's size")
        latent_BLC = self.denoise(jobs, self.condition(jobs), on_step, cancelled, resume)
        return self.decode(latent_BLC, jobs[0].width, jobs[0].height)

    @torch.no_grad()
    def condition(self, jobs: Sequence[RenderJob]) -> Condition:
        txt_BTD, y_BV = self.words([job.prompt for job in jobs])
        rows, columns = latents.latent_size(jobs[0].height, jobs[0].width, self.vae.config.compression)
        ids = latents.image_ids(torch.empty(len(jobs), 0, rows, columns, device=self.device))
        references = [self.encode_reference(j.reference, self.reference_size(j)) for j in jobs if j.reference]
        reference = None
        if references:
            latent_BCHW = torch.cat(references)
            ids = torch.cat((ids, latents.image_ids(latent_BCHW, axis0=1)), dim=1)
            reference = latents.pack(latent_BCHW)
        return Condition(txt_BTD, latents.text_ids(txt_BTD), y_BV, ids, self.guidance(jobs), reference)

    @property
    def batched(self) -> bool:
        """Whether jobs go through a network together. Sums take another order in company than alone, and where rounding
        is coarser than float32 the picture shows it: there each job goes by itself."""
        return self.dtype == torch.float32

    def words(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        calls = [prompts] if self.batched else [[prompt] for prompt in prompts]
        txt, y = zip(*(self.text(call, self.max_text) for call in calls), strict=True)
        return torch.cat(txt).to(self.device, self.dtype), torch.cat(y).to(self.device, self.dtype)

    def guidance(self, jobs: Sequence[RenderJob]) -> Tensor | None:
        if not self.flux.config.guidance_embed:
            return None
        return torch.tensor([job.guidance for job in jobs], dtype=torch.float32, device=self.device)

    def encode_reference(self, reference: "Image.Image", size: Size) -> Tensor:
        from PIL import Image

        picture = reference.resize(size, Image.Resampling.LANCZOS)
        return self.vae.encode(latents.to_tensor(picture).to(self.device, self.vae_dtype))

    def reference_size(self, job: RenderJob) -> Size:
        """Jobs rendered together must agree on this too."""
        if self.kontext_sizes is None or job.reference is None:
            rows, columns = latents.latent_size(job.height, job.width, self.vae.config.compression)
            return columns * self.vae.config.compression, rows * self.vae.config.compression
        ratio = job.reference.width / job.reference.height
        return min(self.kontext_sizes, key=lambda size: abs(ratio - size[0] / size[1]))

    @torch.no_grad()
    def denoise(
        self,
        jobs: Sequence[RenderJob],
        condition: Condition,
        on_step: Callable[[int, int, Preview], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        resume: SavedLatent | None = None,
    ) -> Tensor:
        job = jobs[0]
        noise_BLC = latents.pack(torch.cat([self.noise(job) for job in jobs]))
        times = sampler.schedule(job.steps, noise_BLC.shape[1], self.shift)
        fresh = SavedLatent(0, job.steps, noise_BLC, (job.width, job.height))
        start = fresh if resume is None else fitting(resume, fresh)
        draw = partial(self.draw, width=job.width, height=job.height)

        def seen(progress: Progress) -> None:
            if on_step is not None:
                on_step(progress.step, progress.total, Preview(progress, draw))

        latent_BLC = sampler.euler(
            partial(sampler.velocity if self.batched else sampler.velocity_alone, self.flux, condition),
            start.latent_BLC.to(self.device),
            times,
            size=start.size,
            start=start.step,
            on_step=seen,
            cancelled=cancelled,
        )
        finite(latent_BLC, "latent")
        return latent_BLC

    def noise(self, job: RenderJob) -> Tensor:
        config = self.vae.config
        return latents.draw_noise(job.seed, job.height, job.width, config.z_channels, config.compression)

    @torch.no_grad()
    def decode(self, latent_BLC: Tensor, width: int, height: int) -> list[Pixels]:
        """One picture at a time: memory is that of one, and a batch decodes to what its members do alone."""
        grid = latents.unpack(latent_BLC, height, width, self.vae.config.compression).to(self.vae_dtype)
        decode = self.decode_tiles if self.in_tiles(width, height) else self.vae.decode
        pictures = [decode(latent) for latent in torch.split(grid, 1)]
        finite(pictures, "picture")
        # Sizes that are no multiple of a patch were rounded up; the job gets what it asked for.
        return [latents.to_pixels(rgb)[0, :height, :width].numpy() for rgb in pictures]

    def in_tiles(self, width: int, height: int) -> bool:
        return width * height > self.tile_above

    def decode_tiles(self, latent_BCHW: Tensor) -> Tensor:
        return self.vae.decode_tiled(latent_BCHW)

    @property
    def vae_dtype(self) -> torch.dtype:
        return next(self.vae.parameters()).dtype

    @torch.no_grad()
    def draw(self, clean_BLC: Tensor, width: int, height: int) -> list[Pixels]:
        """A pixel for each latent, decoded from at most `PREVIEW` latents a side: a fraction of the whole decode."""
        latent_BCHW = latents.unpack(clean_BLC, height, width, self.vae.config.compression).to(self.vae_dtype)
        rows, columns = latent_BCHW.shape[2:]
        shrink = max(1.0, max(rows, columns) / PREVIEW)
        few = F.interpolate(latent_BCHW, (round(rows / shrink), round(columns / shrink)), mode="area")
        rgb_B3HW = torch.cat([self.vae.decode(latent) for latent in torch.split(few, 1)])
        return list(latents.to_pixels(F.interpolate(rgb_B3HW.float(), (rows, columns), mode="area")).numpy())


def finite(batch: Iterable[Tensor], what: str) -> None:
    bad = [place for place, values in enumerate(batch) if not bool(torch.isfinite(values).all())]
    if bad:
        raise NotFinite(what, bad)


def fitting(saved: SavedLatent, fresh: SavedLatent) -> SavedLatent:
    theirs, ours = ((each.total, each.size, tuple(each.latent_BLC.shape)) for each in (saved, fresh))
    if theirs != ours:
        raise ValueError(
            "the saved latent has {} steps, size {} and shape {}; ".format(*theirs)
            + "these jobs have {} steps, size {} and shape {}".format(*ours)
        )
    return saved
