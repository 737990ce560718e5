"""What the three stages of a picture share: the job, its pixels, and the refusal of bad numbers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

Pixels = NDArray[np.uint8]
Size = tuple[int, int]  # width, height


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


def finite(batch: Iterable[Tensor], what: str) -> None:
    bad = [place for place, values in enumerate(batch) if not bool(torch.isfinite(values).all())]
    if bad:
        raise NotFinite(what, bad)
