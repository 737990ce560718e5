"""Stands in for the model where it is the farm that is on trial: a coloured noise for each seed, at a model's pace."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actors.messages import Post
from actors.shard import Shard

if TYPE_CHECKING:
    from actors.flux.render import RenderJob

STEP_S = 0.05


class Noise:
    def render(self, jobs: Sequence[RenderJob], *rest: Any, **more: Any) -> list[NDArray[np.uint8]]:
        for _ in range(jobs[0].steps):
            time.sleep(STEP_S)
        return [self.picture(job) for job in jobs]

    def picture(self, job: RenderJob) -> NDArray[np.uint8]:
        rng = np.random.default_rng(job.seed)
        return rng.integers(0, 256, (job.height, job.width, 3), dtype=np.uint8)


def load_shard(post: Post) -> Shard:
    return Shard(Noise(), "0" * 64)
