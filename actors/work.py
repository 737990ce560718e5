"""One call to a rank while it runs: the wish to stop it, and how far it is. The drawing writes, questions read."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from actors import saved
from actors.messages import Mark
from farm.ports import Frame, RenderRequest, Step

if TYPE_CHECKING:
    from actors.flux.render import Pixels, Preview

log = logging.getLogger("farm.rank")
PREVIEW_S = 2.0  # between two previews, and before the first


class Work:
    def __init__(self, call: str = "", save_every: int = 0, gang: str = "", weights: str = "") -> None:
        self.call, self.save_every, self.gang, self.weights = call, save_every, gang, weights
        self.stop = threading.Event()
        self.at: tuple[Sequence[RenderRequest], int, int] = (), 0, 0
        self.previews: dict[int, Frame] = {}  # by job, not asked for yet
        self.kept: tuple[Sequence[RenderRequest], Sequence[str], Preview] | None = None
        self.began = self.previewed = time.monotonic()

    def seen(self, requests: Sequence[RenderRequest], digests: Sequence[str]) -> Callable[[int, int, Preview], None]:
        """What the drawing of these calls after each step. It must not fail: the other ranks go on to the next."""

        def on_step(step: int, total: int, preview: Preview) -> None:
            self.at = requests, step, total
            if step < total and self.save_every and step % self.save_every == 0:
                self.kept = requests, digests, preview
            now = time.monotonic()
            # Of a long job seldom, for a verdict on each is kept for ever.
            if step < total and now - self.previewed >= max(PREVIEW_S, (now - self.began) / 5):
                self.previews, self.previewed = self._pictures(requests, preview), now

        return on_step

    def mark(self, save: bool) -> Mark:
        """Previews, and latents where they are asked for, are given once."""
        previews, self.previews = self.previews, {}
        requests, step, total = self.at
        steps = [
            Step(one.job_id, one.attempt, step, total, previews.get(one.job_id), self.gang, self.weights)
            for one in requests
        ]
        return Mark(tuple(steps), tuple(self._latents()) if save else ())

    def _latents(self) -> list[tuple[int, bytes]]:
        kept, self.kept = self.kept, None
        if kept is None:
            return []
        requests, digests, preview = kept
        return list(zip([one.job_id for one in requests], saved.pack(preview.saved(), digests), strict=False))

    def _pictures(self, requests: Sequence[RenderRequest], preview: Preview) -> dict[int, Frame]:
        try:
            pictures = preview.pictures()
            if not pictures:  # it is decoded elsewhere
                return {}
            return {one.job_id: frame_of(picture) for one, picture in zip(requests, pictures, strict=True)}
        except Exception as error:  # for want of memory, say
            log.info("no preview: %s", error)
            return {}


def frame_of(picture_HW3: Pixels) -> Frame:
    height, width, channels = picture_HW3.shape
    if channels != 3 or picture_HW3.dtype != "uint8":
        raise TypeError(f"a picture of {picture_HW3.dtype}, {channels} channels")
    return Frame(width, height, picture_HW3.tobytes())
