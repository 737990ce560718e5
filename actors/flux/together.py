"""A renderer on every rank of a gang: all walk the same steps, and the first has the pictures.

Every rank asks the same questions in the same order; what one of them alone knows (a wish to stop, a picture that came
out wrong) it tells the others, for a rank that goes its own way leaves the rest waiting for it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from actors.flux.exchange import Seat, decode_together
from actors.flux.render import NotFinite, Pixels, Preview, Renderer, RenderJob
from actors.flux.sampler import Condition, SavedLatent

FIRST = 0


class GangRenderer(Renderer):
    def __init__(self, seat: Seat, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.seat, self.first = seat, dist.get_rank() == FIRST

    def denoise(
        self,
        jobs: Sequence[RenderJob],
        condition: Condition,
        on_step: Callable[[int, int, Preview], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        resume: SavedLatent | None = None,
    ) -> Tensor:
        def agreed() -> bool:
            """One rank hears of it first; then all stop before the same step."""
            return bool(told(cancelled is not None and cancelled(), dist.ReduceOp.MAX))

        return super().denoise(jobs, condition, on_step, agreed, resume)

    def decode(self, latent_BLC: Tensor, width: int, height: int) -> list[Pixels]:
        """In tiles by all of them, or whole by the first alone; the others have no pictures then."""
        if self.in_tiles(width, height):
            return super().decode(latent_BLC, width, height)
        pictures, bad = [], torch.zeros(len(latent_BLC), dtype=torch.int32)
        if self.first:
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
