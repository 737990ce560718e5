"""Flow matching by Euler steps: pure functions over packed latents. Times run from 1 (noise) to 0 (picture).

B batch, L image tokens, R reference tokens, T text tokens, C channels, D text width, V pooled width.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from actors.flux.model import Flux


@dataclass(frozen=True)
class SavedLatent:
    """Where a picture stood between two steps: enough to go on from, on any device."""

    step: int
    total: int
    latent_BLC: Tensor  # float32, on the CPU
    size: tuple[int, int]  # width and height of the picture: tokens alone do not tell tall from wide


class Progress(NamedTuple):
    step: int
    total: int
    latent_BLC: Tensor
    clean_BLC: Tensor  # the picture this step was heading for
    size: tuple[int, int]

    def saved(self) -> SavedLatent:
        return SavedLatent(self.step, self.total, self.latent_BLC.float().cpu(), self.size)


class Cancelled(Exception):
    """Stopped between two steps on request; `saved` is where to go on from."""

    def __init__(self, saved: SavedLatent) -> None:
        super().__init__(f"cancelled after step {saved.step} of {saved.total}")
        self.saved = saved


@dataclass(frozen=True)
class Condition:
    """All that steers a batch besides its latents."""

    txt_BTD: Tensor
    txt_ids_BT3: Tensor
    y_BV: Tensor
    img_ids_BL3: Tensor  # the noise tokens' ids, then the reference's
    guidance_B: Tensor | None
    reference_BRC: Tensor | None = None


def schedule(steps: int, image_tokens: int, shift: bool) -> list[float]:
    """The times between steps, `steps + 1` of them; large pictures stay longer near the noise."""
    if steps < 1:
        raise ValueError(f"steps is {steps}: give 1 or more")
    times = [1 - i / steps for i in range(steps + 1)]
    return [shifted(t, resolution_shift(image_tokens)) for t in times] if shift else times


def resolution_shift(image_tokens: int) -> float:
    """A line through (256, 0.5) and (4096, 1.15), not clamped beyond them."""
    return 0.5 + (image_tokens - 256) * (1.15 - 0.5) / (4096 - 256)


def shifted(t: float, mu: float) -> float:
    return 0.0 if t == 0 else 1 / (1 + (1 / t - 1) * math.exp(-mu))


def velocity(flux: Flux, condition: Condition, latent_BLC: Tensor, time: float) -> Tensor:
    """One call of the model; what it says of the reference's tokens is dropped."""
    dtype, length = condition.txt_BTD.dtype, latent_BLC.shape[1]
    img_BLC = latent_BLC.to(dtype)
    if condition.reference_BRC is not None:
        img_BLC = torch.cat((img_BLC, condition.reference_BRC.to(dtype)), dim=1)
    time_B = torch.full((img_BLC.shape[0],), time, dtype=torch.float32, device=img_BLC.device)
    c = condition
    out_BLC: Tensor = flux(img_BLC, c.img_ids_BL3, c.txt_BTD, c.txt_ids_BT3, time_B, c.y_BV, c.guidance_B)
    return out_BLC[:, :length]


def velocity_alone(flux: Flux, condition: Condition, latent_BLC: Tensor, time: float) -> Tensor:
    """The same, one job after the other: what comes of each is what comes of it without the others."""
    jobs = zip(alone(condition), latent_BLC.split(1), strict=True)
    return torch.cat([velocity(flux, each, latent, time) for each, latent in jobs])


def alone(condition: Condition) -> Iterator[Condition]:
    for job in range(len(condition.txt_BTD)):
        rows: dict[str, Any] = {
            name: each if each is None else each[job : job + 1] for name, each in vars(condition).items()
        }
        yield Condition(**rows)


def euler(
    velocity_at: Callable[[Tensor, float], Tensor],
    latent_BLC: Tensor,
    times: list[float],
    *,
    size: tuple[int, int] = (0, 0),
    start: int = 0,
    on_step: Callable[[Progress], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Tensor:
    """Walk the latent along `times` from step `start`; it stays in float32 whatever the model runs in."""
    total = len(times) - 1
    latent_BLC = latent_BLC.float()
    for step in range(start, total):
        if cancelled is not None and cancelled():
            raise Cancelled(SavedLatent(step, total, latent_BLC.cpu(), size))
        now, after = times[step], times[step + 1]
        slope_BLC = velocity_at(latent_BLC, now).float()
        clean_BLC = latent_BLC - now * slope_BLC
        latent_BLC = latent_BLC + (after - now) * slope_BLC
        if on_step is not None:
            on_step(Progress(step + 1, total, latent_BLC, clean_BLC, size))
    return latent_BLC
