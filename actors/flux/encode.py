"""The first stage: words and the reference picture to what steers the transformer, for each job by itself.

T tokens, D T5 width, V CLIP width, C channels, H rows, W columns.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from actors.flux import latents
from actors.flux.jobs import RenderJob, Size
from actors.flux.vae import AutoEncoder

if TYPE_CHECKING:
    from PIL import Image

Encode = Callable[[list[str], int], tuple[Tensor, Tensor]]
Words = tuple[Tensor, Tensor]

TALL: tuple[Size, ...] = (
    (672, 1568), (688, 1504), (720, 1456), (752, 1392), (800, 1328), (832, 1248), (880, 1184), (944, 1104),
)  # fmt: skip
KONTEXT_SIZES: tuple[Size, ...] = (*TALL, (1024, 1024), *((height, width) for width, height in reversed(TALL)))
"""What Kontext was trained on: a reference is resized to the one nearest in aspect ratio."""


@dataclass(frozen=True)
class Encoded:
    """One job's, on the CPU, from where any transformer takes it."""

    txt_1TD: Tensor
    y_1V: Tensor
    reference_1CHW: Tensor | None = None


class Embeddings:
    """The prompts encoded last, in at most `limit` bytes of host memory.

    Each prompt is encoded alone, for company changes the sums: one that is found again is what it would be anew. The
    ranks of a gang meet the same prompts in the same order, so that all of them find it or none.
    """

    def __init__(self, encode: Encode, limit: int) -> None:
        self.encode, self.limit = encode, limit
        self.kept: OrderedDict[tuple[str, int], Words] = OrderedDict()
        self.nbytes = self.found = self.made = 0

    @torch.no_grad()
    def of(self, prompt: str, max_text: int) -> Words:
        key = prompt, max_text
        if key in self.kept:
            self.found += 1
            self.kept.move_to_end(key)
            return self.kept[key]
        self.made += 1
        txt_1TD, y_1V = self.encode([prompt], max_text)
        words = txt_1TD.cpu(), y_1V.cpu()
        if size_of(words) <= self.limit:
            self.kept[key] = words
            self.nbytes += size_of(words)
        while self.nbytes > self.limit:
            self.nbytes -= size_of(self.kept.popitem(last=False)[1])
        return words


def size_of(words: Words) -> int:
    return sum(each.nbytes for each in words)


class Encoder:
    def __init__(
        self,
        text: Embeddings,
        vae: AutoEncoder,
        device: torch.device | str,
        *,
        max_text: int = 512,
        kontext_sizes: tuple[Size, ...] | None = None,
    ) -> None:
        """`kontext_sizes` None resizes a reference to its job's own size."""
        self.text, self.vae, self.device = text, vae, torch.device(device)
        self.max_text, self.kontext_sizes = max_text, kontext_sizes

    @torch.no_grad()
    def encode(self, job: RenderJob) -> Encoded:
        reference = None if job.reference is None else self.encode_reference(job.reference, self.reference_size(job))
        return Encoded(*self.text.of(job.prompt, self.max_text), reference)

    def encode_reference(self, reference: "Image.Image", size: Size) -> Tensor:
        from PIL import Image

        picture = reference.resize(size, Image.Resampling.LANCZOS)
        return self.vae.encode(latents.to_tensor(picture).to(self.device, self.vae.dtype)).cpu()

    def reference_size(self, job: RenderJob) -> Size:
        """Jobs rendered together must agree on this too."""
        if self.kontext_sizes is None or job.reference is None:
            rows, columns = latents.latent_size(job.height, job.width, self.vae.config.compression)
            return columns * self.vae.config.compression, rows * self.vae.config.compression
        ratio = job.reference.width / job.reference.height
        return min(self.kontext_sizes, key=lambda size: abs(ratio - size[0] / size[1]))
