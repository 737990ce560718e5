"""A renderer on every rank of a gang: all walk the same steps, and the first has the pictures.

Every rank asks the same questions in the same order; what one of them alone knows (a wish to stop, a picture that came
out wrong) it tells the others, for a rank that goes its own way leaves the rest waiting for it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from actors.flux.decode import Decoder
from actors.flux.denoise import Denoiser, Draw, Preview
from actors.flux.encode import Encoded
from actors.flux.exchange import decode_together
from actors.flux.jobs import NotFinite, Pixels, RenderJob
from actors.flux.sampler import SavedLatent

FIRST = 0


class GangDenoiser(Denoiser):
    def denoise(
        self,
        jobs: Sequence[RenderJob],
        encoded: Sequence[Encoded],
        on_step: Callable[[int, int, Preview], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        resume: SavedLatent | None = None,
        draw: Draw | None = None,
    ) -> Tensor:
        def agreed() -> bool:
            """One rank hears of it first; then all stop before the same step."""
            return bool(told(cancelled is not None and cancelled(), dist.ReduceOp.MAX))

        return super().denoise(jobs, encoded, on_step, agreed, resume, draw)


class GangDecoder(Decoder):
    def decode(self, latent_BLC: Tensor, width: int, height: int) -> list[Pixels]:
        """In tiles by all of them, or whole by the first alone; the others have no pictures then."""
        if self.in_tiles(width, height):
            return super().decode(latent_BLC, width, height)
        pictures, bad = [], torch.zeros(len(latent_BLC), dtype=torch.int32)
        if dist.get_rank() == FIRST:
            try:
                pictures = super().decode(latent_BLC, width, height)
            except NotFinite as error:
                bad[list(error.jobs)] = 1
        dist.broadcast(bad, FIRST)
        if bad.any():
            raise NotFinite("picture", bad.nonzero().flatten().tolist())
        return pictures

    def decode_tiles(self, latent_BCHW: Tensor) -> Tensor:
        return decode_together(self.vae, latent_BCHW)


def told(value: int, how: Any) -> int:
    """On the CPU: asking there does not wait for the GPU's work."""
    shared = torch.tensor(int(value))
    dist.all_reduce(shared, op=how)
    return int(shared)
