"""One rank: the shard it holds, and the watchdog that ends it. Plain Python; `gang.py` makes a Ray actor of it."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import groupby
from typing import TYPE_CHECKING, Any

from actors import saved
from actors.faults import fault_of
from actors.messages import Hello, Mark, Order, Post
from actors.shard import Shard, factory, hide_gpus, require, stamps
from actors.stages import Made, Stage
from actors.work import Work, frame_of
from farm.errors import Fault
from farm.job import CAUSES, Cause, Payer
from farm.ports import GangState, Rendered, RenderRequest

if TYPE_CHECKING:
    from actors.flux.render import RenderJob
    from actors.flux.sampler import SavedLatent
    from actors.meeting import Door

log = logging.getLogger("farm.rank")
# What ranks meet alike: they compute the same, and vote on stopping.
MET_BY_ALL = frozenset({Cause.NOT_FINITE, Cause.BAD_INPUT, Cause.LEASE_LOST, Cause.WEIGHTS_MISSING})
Answer = Rendered | Fault | tuple[float, Made]  # the seconds it took, and what is handed on
RENDER, CONTROL = "render", "control"  # the actor's concurrency groups: work goes one by one, questions pass it


@dataclass(frozen=True, slots=True)
class Begun:
    """A job, what decides its picture, and where an earlier attempt at that very picture stood."""

    request: RenderRequest
    digest: str
    start: SavedLatent | None = None
    given: Made | None = None  # of the stage before

    def kind(self) -> tuple[tuple[int, int] | None, int]:
        """What those have in common that are drawn together."""
        reference = self.request.reference
        return (reference.width, reference.height) if reference else None, self.start.step if self.start else 0


class Rank:
    """Of several, each does the same at the same time; the first answers for all. `device` is what the post's comes to
    with the GPUs that Ray gives it."""

    def __init__(self, gang: str, post: Post, number: int = 0, device: str = "") -> None:
        if device == "cpu":
            hide_gpus()
        self.gang, self.post, self.number, self.device = gang, post, number, device or post.device
        self.state = GangState.STARTING
        self.door: Door | None = None
        self.shard: Shard | None = None
        self.loaded: tuple[tuple[int, int], ...] = ()  # sizes and times of its files when they were loaded
        self.work = Work()
        self.left: tuple[str, list[tuple[int, bytes]]] = "", []  # of the last call, by job, where it was stopped

    def hello(self) -> Hello:
        changed = self.shard is not None and stamps(self.shard.files) != self.loaded
        weights = self.shard.weights if self.shard else ""
        return Hello(self.gang, self.post.key, self.state, os.getpid(), changed, weights)

    def meet(self) -> str:
        """Where the others find the first rank."""
        from actors.meeting import Door

        self.door = self.door or Door()
        return self.door.address

    def load(self, meeting: str = "") -> Hello:
        """Once; asked again, it answers at once."""
        if self.shard is None:
            try:
                require(self.post.code)
                with watchdog(self.post.load_s):
                    self._join(meeting)
                    shard: Shard = factory(self.post.shard)(replace(self.post, device=self.device))
                self.shard, self.loaded = shard, stamps(shard.files)
            except Exception as error:
                raise fault_of(error, self.gang, Cause.GANG_DIED) from None  # the cause may not pickle
        self.state = GangState.READY
        return self.hello()

    def render(self, order: Order, *given: Made) -> Any:
        """An answer for each; where it hands on, its seconds or the fault, and then apart what was made of each, or
        None. `given` is what the stage before has made."""
        if self.shard is None:
            raise Fault(Cause.GANG_DIED, "asked to draw before its weights were there", gang=self.gang)
        self.work = Work(order.call, order.save_every, self.gang, self.shard.weights)
        self.state, self.left = GangState.BUSY, (order.call, [])
        try:
            with watchdog(order.limit_s):
                answers = self._answers(self.shard, order.requests, given)
                return apart(answers, len(order.requests)) if order.hands_on else answers
        finally:
            self.work, self.state = Work(), GangState.READY

    def cancel(self, call: str) -> None:
        """Between two steps the group ends. A call that is over is left alone."""
        work = self.work
        if call == work.call:
            work.stop.set()

    def progress(self, call: str, save: bool) -> Mark | None:
        """How far it is, with latents to go on from if they are wanted; None once it is over."""
        work = self.work
        return work.mark(save) if call == work.call else None

    def stopped_at(self, call: str) -> list[tuple[int, bytes]]:
        """Where the jobs of a call stood that was cancelled: those that are still wanted go on from there."""
        last, left = self.left
        return left if call == last else []

    def _join(self, meeting: str) -> None:
        if self.post.ranks > 1:
            from actors.meeting import join

            join(self.number, self.post.ranks, self.door or meeting, self.device)

    def _answers(self, shard: Shard, requests: Sequence[RenderRequest], given: Sequence[Made]) -> list[Answer]:
        answers: list[Answer] = []
        made: Sequence[Made | None] = given or [None] * len(requests)
        begun = [self._begun(shard, request, one) for request, one in zip(requests, made, strict=True)]
        for _, alike in groupby(begun, key=Begun.kind):
            answers += self._together(shard, tuple(alike))
        return answers

    def _begun(self, shard: Shard, request: RenderRequest, given: Made | None = None) -> Begun:
        by = given.by if given else ""
        digest = saved.digest_of(request, shard.weights, self.post, self.device, by)
        anew = Begun(request, digest, given=given)
        if request.resume is None:
            return anew
        try:
            start = saved.unpack(request.resume, digest)
        except ValueError as error:
            log.warning("job %d starts anew, not from what was kept of it: %s", request.job_id, error)
            return anew
        log.info("job %d goes on from step %d", request.job_id, start.step)
        return replace(anew, start=start)

    def _together(self, shard: Shard, begun: tuple[Begun, ...]) -> list[Answer]:
        """If a group fails, each is drawn alone: one bad job is not held against its neighbours."""
        try:
            return list(self._draw(shard, begun))
        except Exception as error:
            fault = fault_of(error, self.gang)
            if self.number == 0 and (stood := getattr(error, "saved", None)) and stood.step:
                latents = saved.pack(stood, [one.digest for one in begun])
                self.left[1].extend(zip([one.request.job_id for one in begun], latents, strict=False))
        if self.post.ranks > 1 and fault.cause not in MET_BY_ALL:
            # It may be this rank's alone; the others wait for it where it will not come.
            cause = fault.cause if CAUSES[fault.cause] is Payer.GANG else Cause.GANG_DIED
            raise Fault(cause, fault.detail, gang=self.gang)
        if len(begun) == 1 or fault.cause is Cause.LEASE_LOST:
            return [fault for _ in begun]
        return [answer for one in begun for answer in self._together(shard, (one,))]

    def _draw(self, shard: Shard, begun: tuple[Begun, ...]) -> list[Answer]:
        given = [self._sound(one.given, shard) for one in begun if one.given]
        began, requests = time.monotonic(), [one.request for one in begun]
        starts = [one.start for one in begun if one.start is not None]
        render: Callable[..., Sequence[Any]] = shard.renderer.render  # what begins with the words takes nothing given
        made = render(
            [job_of(request) for request in requests],
            on_step=self.work.seen(requests, [one.digest for one in begun]) if self.number == 0 else None,
            cancelled=self.work.stop.is_set,
            resume=saved.joined(starts) if starts else None,
            **({"given": [made.value for made in given]} if given else {}),
        )
        seconds = (time.monotonic() - began) / len(requests)
        if self.number > 0:
            return []
        if len(made) != len(requests):
            raise RuntimeError(f"{len(made)} pictures for {len(requests)} jobs")
        if self.post.hands_on:
            by = f"{self.device} {self.post.precision}"
            drawn_with = drawn_by(self.post, self.device)
            return [(seconds, Made(value, self.gang, shard.weights, by, drawn_with)) for value in made]
        elsewhere = given[0] if given and Stage.DENOISE not in self.post.stages else None
        drew = elsewhere.gang if elsewhere else self.gang
        drawn_with = elsewhere.drawn_with if elsewhere else drawn_by(self.post, self.device)
        return [Rendered(frame_of(picture), drew, shard.weights, seconds, drawn_with) for picture in made]

    def _sound(self, made: Made, shard: Shard) -> Made:
        """What goes on record as the weights must be what the stage before had, too."""
        if made.weights != shard.weights:
            words = f"gang {made.gang} has loaded other files of {self.post.card.name} than gang {self.gang}"
            raise Fault(Cause.WEIGHTS_MISSING, words, gang=made.gang)
        return made


def drawn_by(post: Post, device: str) -> str:
    """What else it takes to draw a picture again: the same words on every machine that is set up alike."""
    plan = {"device": device, "precision": post.precision, "tensor": post.tensor, "sequence": post.sequence}
    return json.dumps(plan | {name: version(name) for name in ("renderfarm", "torch")}, sort_keys=True)


def apart(answers: Sequence[Answer], count: int) -> tuple[Any, ...]:
    """As Ray returns it: what the dispatcher reads, and what it hands on unread. Only the first rank has any."""
    told = [answer[0] if isinstance(answer, tuple) else answer for answer in answers]
    made = [answer[1] if isinstance(answer, tuple) else None for answer in answers]
    return told, *(made or [None] * count)


@contextlib.contextmanager
def watchdog(limit_s: float) -> Iterator[None]:
    """Past its limit the process writes where it hangs, and ends. It needs no interpreter lock to do so."""
    faulthandler.dump_traceback_later(limit_s, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def job_of(request: RenderRequest) -> RenderJob:
    from PIL import Image

    from actors.flux.render import RenderJob

    spec, seen = request.spec, request.reference
    reference = Image.frombytes("RGB", (seen.width, seen.height), seen.pixels) if seen else None
    return RenderJob(spec.prompt, spec.seed, spec.width, spec.height, spec.steps, spec.guidance, reference)
