"""One rank: the shard it holds, and the watchdog that ends it. Plain Python; `gang.py` makes a Ray actor of it."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from actors.faults import fault_of
from actors.messages import GangState, Hello, Order, Post
from farm.errors import Fault
from farm.job import Cause
from farm.ports import Frame, ModelCard, Rendered, RenderRequest

if TYPE_CHECKING:
    from actors.flux.offload import Setting
    from actors.flux.render import Pixels, RenderJob

RENDER, CONTROL = "render", "control"  # the actor's concurrency groups: work goes one by one, questions pass it


class Draws(Protocol):
    """`actors.flux.render.Renderer`, as far as a rank uses it."""

    def render(self, jobs: Sequence[RenderJob], *, cancelled: Callable[[], bool] | None = None) -> Sequence[Pixels]: ...


@dataclass(frozen=True, slots=True)
class Shard:
    renderer: Draws
    weights: str  # SHA-256 over its files


def load_shard(card: ModelCard, folder: Path | None, device: str, offload: Setting = "auto") -> Shard:
    import torch

    from actors.flux.weights import weights_sha256
    from actors.models import load_renderer, locate

    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    dtype = torch.bfloat16 if place.startswith("cuda") else torch.float32
    renderer = load_renderer(card, folder, place, dtype, offload)
    return Shard(renderer, weights_sha256(locate(card, folder).paths))


def factory(dotted: str) -> Callable[..., Any]:
    """`package.module:name`, as the composition root gives it."""
    module, _, name = dotted.partition(":")
    made: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return made


class Rank:
    def __init__(self, gang: str, post: Post) -> None:
        self.gang, self.post = gang, post
        self.state = GangState.STARTING
        self.shard: Shard | None = None
        self.call, self.stop = "", threading.Event()

    def hello(self) -> Hello:
        return Hello(self.gang, self.post.key, self.state, os.getpid())

    def load(self) -> Hello:
        """Once; asked again, it answers at once."""
        if self.shard is None:
            try:
                with watchdog(self.post.load_s):
                    self.shard = self._load()
            except Exception as error:
                raise fault_of(error, self.gang, Cause.GANG_DIED) from None  # the cause may not pickle
        self.state = GangState.READY
        return self.hello()

    def render(self, order: Order) -> list[Rendered | Fault]:
        if self.shard is None:
            raise Fault(Cause.GANG_DIED, "asked to draw before its weights were there", gang=self.gang)
        self.call, self.state = order.call, GangState.BUSY
        try:
            with watchdog(order.limit_s):
                return self._answers(self.shard, order.requests)
        finally:
            self.call, self.state = "", GangState.READY
            self.stop.clear()

    def cancel(self, call: str) -> None:
        """Between two steps the group ends. A call that is over is left alone."""
        if call == self.call:
            self.stop.set()

    def _load(self) -> Shard:
        folder = Path(self.post.models) if self.post.models else None
        shard: Shard = factory(self.post.shard)(self.post.card, folder, self.post.device, self.post.offload)
        return shard

    def _answers(self, shard: Shard, requests: tuple[RenderRequest, ...]) -> list[Rendered | Fault]:
        answers: list[Rendered | Fault] = []
        for _, alike in groupby(requests, key=reference_size):
            answers += self._together(shard, tuple(alike))
        return answers

    def _together(self, shard: Shard, requests: tuple[RenderRequest, ...]) -> list[Rendered | Fault]:
        """If a group fails, each is drawn alone: one bad job is not held against its neighbours."""
        try:
            return list(self._draw(shard, requests))
        except Exception as error:
            fault = fault_of(error, self.gang)
        if len(requests) == 1 or self.stop.is_set():
            return [fault for _ in requests]
        return [answer for request in requests for answer in self._together(shard, (request,))]

    def _draw(self, shard: Shard, requests: tuple[RenderRequest, ...]) -> list[Rendered]:
        began = time.monotonic()
        pictures = shard.renderer.render([job_of(request) for request in requests], cancelled=self.stop.is_set)
        seconds = (time.monotonic() - began) / len(requests)
        if len(pictures) != len(requests):
            raise RuntimeError(f"{len(pictures)} pictures for {len(requests)} jobs")
        return [Rendered(frame_of(picture), self.gang, shard.weights, seconds) for picture in pictures]


@contextlib.contextmanager
def watchdog(limit_s: float) -> Iterator[None]:
    """Past its limit the process writes where it hangs, and ends. It needs no interpreter lock to do so."""
    faulthandler.dump_traceback_later(limit_s, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def reference_size(request: RenderRequest) -> tuple[int, int] | None:
    return (request.reference.width, request.reference.height) if request.reference else None


def job_of(request: RenderRequest) -> RenderJob:
    from PIL import Image

    from actors.flux.render import RenderJob

    spec, seen = request.spec, request.reference
    reference = Image.frombytes("RGB", (seen.width, seen.height), seen.pixels) if seen else None
    return RenderJob(spec.prompt, spec.seed, spec.width, spec.height, spec.steps, spec.guidance, reference)


def frame_of(picture_HW3: Pixels) -> Frame:
    height, width, channels = picture_HW3.shape
    if channels != 3 or picture_HW3.dtype != "uint8":
        raise TypeError(f"a picture of {picture_HW3.dtype}, {channels} channels")
    return Frame(width, height, picture_HW3.tobytes())
