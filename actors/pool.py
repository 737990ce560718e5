"""The farm's renderer. A job goes to a place of its model whose gang is warm and free; what there is to be had is seen
to by tending."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from actors import cluster, faults, gang, room
from actors.messages import Order
from actors.places import Place
from actors.stages import LostOnItsWay, Stage, along
from actors.tending import ROOM_S, TEND_S, Answer, Tending
from farm.config import Settings
from farm.errors import Fault
from farm.job import CAUSES, Cause, Payer, megapixel_steps
from farm.ports import Demand, GangState, GangStatus, ModelCard, NodeStatus, Rendered, RenderRequest, Step, ignore
from farm.scratch import SCRATCH, Scratch

POLL_S = 0.1


def limit_s(requests: Sequence[RenderRequest]) -> float:
    """Far longer than the slowest sound device takes; past it the gang hangs."""
    return 300.0 + 60.0 * work_of(requests)


def work_of(requests: Sequence[RenderRequest]) -> float:
    return sum(megapixel_steps(request.spec.shape_key) for request in requests)


def never() -> bool:
    return False


class Pool(Tending):
    def __init__(
        self,
        settings: Settings,
        cards: Mapping[str, ModelCard],
        *,
        shard: str = "actors.shard:load_shard",
        limit: Callable[[Sequence[RenderRequest]], float] = limit_s,
        room_s: float = ROOM_S,
    ) -> None:
        super().__init__(settings, cards, shard, room_s)
        self.limit = limit
        self.scratch = Scratch(settings.home / SCRATCH)

    def render(
        self,
        requests: Sequence[RenderRequest],
        cancelled: Callable[[], bool],
        watch: Callable[[Sequence[Step]], None] = ignore,
    ) -> list[Rendered | Fault]:
        """From stage to stage, where they are apart. What one makes for the next goes past us; is it lost on its way,
        it is made once more."""
        model = requests[0].spec.model
        if model not in self.paths:
            raise Fault(Cause.WEIGHTS_MISSING, f"this farm has no pool for {model!r}")
        path, ask = self.paths[model], partial(self._stage, cancelled, watch)
        try:
            return along(path, requests, ask)
        except LostOnItsWay:
            return along(path, requests, ask)

    def _stage(
        self,
        cancelled: Callable[[], bool],
        watch: Callable[[Sequence[Step]], None],
        asked_for: str,
        requests: Sequence[RenderRequest],
        given: Sequence[Any],
    ) -> Sequence[Answer]:
        """By a gang that does it. Whatever goes wrong here is this gang's."""
        if self.places[asked_for][0].post.stages == (Stage.DECODE,):
            cancelled = never  # for the sake of one, what is drawn of the others is not thrown away
        try:
            place = self._place(asked_for, requests, cancelled)
        except Fault:
            raise
        except faults.RAISED as error:  # nothing was asked of a gang yet
            raise Fault(Cause.RAY_GONE, faults.fault_of(error).detail) from error
        jobs = [request.job_id for request in requests]
        try:
            return self._judge(place, jobs, self._render(place, tuple(requests), given, cancelled, watch))
        except faults.RAISED as error:
            if given and faults.lost_before_it_began(error):
                raise self._not_given(place, error) from error
            (fault,) = self._judge(place, jobs[:1], [self._lost(place, error)])
            raise fault from error
        finally:
            self._leave(place)

    def status(self) -> list[GangStatus]:
        names = {id_: node.name for id_, node in self.seen.items()}
        return [place.status(names) for place in self._all()]

    def nodes(self) -> list[NodeStatus]:
        return [NodeStatus(id_, node.name, node.cpus, node.gpus) for id_, node in self.seen.items()]

    def _place(self, asked_for: str, requests: Sequence[RenderRequest], cancelled: Callable[[], bool]) -> Place:
        """One for what is asked, locked, with a gang that is warm and free."""
        me, began = threading.get_ident(), time.time()
        self.asking[me] = asked_for, Demand(len(requests), work_of(requests))
        try:
            tended = 0.0
            while not cancelled():
                if (place := self._free(self.places[asked_for])) is not None:
                    return place
                self._give_up(self.places[asked_for], began)
                if time.time() - tended > TEND_S:
                    self.tend()
                    tended = time.time()
                with self.freed:
                    self.freed.wait(POLL_S)
        finally:
            del self.asking[me]
        raise Fault(Cause.LEASE_LOST, "given up while it waited for its gang")

    def _free(self, places: Sequence[Place]) -> Place | None:
        for place in places:
            if place.usable and place.lock.acquire(blocking=False):
                free = False
                try:
                    free = self._is_free(place)
                finally:
                    if not free:
                        self._leave(place)
                if free:
                    return place
        return None

    def _is_free(self, place: Place) -> bool:
        try:
            self._join(place)
        except Fault as gone:
            place.gang = None
            place.now(GangState.GONE, str(gone))
            raise
        if place.gang is None:
            place.now(GangState.GONE, "a job")
        return place.usable and place.state is GangState.READY

    def _give_up(self, places: Sequence[Place], began: float) -> None:
        """Nobody waits inside for a gang that does not come: the job goes back to the queue, with the reason."""
        now = time.time()
        if places and all(place.form.rests_at(now) for place in places):
            soonest = min(places, key=lambda place: place.form.until)
            raise Fault(Cause.NO_ROOM, f"every gang of {soonest.post.asked} rests: {soonest.waits_for}")
        if any(place.usable or place.comes for place in places):
            return
        latest = max(places, key=lambda place: place.failed_at)
        if latest.fault is not None and latest.failed_at >= began:
            if CAUSES[latest.fault.cause] is Payer.ENVIRONMENT:
                raise Fault(latest.fault.cause, latest.fault.detail, gang=latest.fault.gang)
            raise Fault(Cause.NO_ROOM, f"a gang of {latest.post.asked} did not start: {latest.fault}")
        lacking = next((place for place in places if place.lack is not None or self._gives_way(place.post)), None)
        if lacking is not None and now - began > self.room_s:
            cluster.connect(self.settings)  # or it is Ray that lacks
            raise Fault(Cause.NO_ROOM, room.why_none(lacking.post, gang.standing(), self.drained.nodes))

    def _render(
        self,
        place: Place,
        requests: tuple[RenderRequest, ...],
        given: Sequence[Any],
        cancelled: Callable[[], bool],
        watch: Callable[[Sequence[Step]], None],
    ) -> list[Answer]:
        one = place.gang
        if one is None:
            raise Fault(Cause.GANG_DIED, "its gang was removed before it was asked")
        place.now(GangState.BUSY, f"{len(requests)} pictures")
        begun, call = requests, os.urandom(8).hex()
        if denoises := Stage.DENOISE in place.post.stages:
            begun = tuple(replace(request, resume=self.scratch.read(request.job_id)) for request in requests)
        order = Order(call, begun, self.limit(requests), self.settings.save_every, place.post.hands_on)
        answers = one.render(order, cancelled, watch, self.scratch.write, given)
        for request, answer in zip(requests, answers, strict=True):
            if denoises and isinstance(answer, Fault) and answer.cause is not Cause.LEASE_LOST:
                self.scratch.drop(request.job_id)  # it may be what is wrong
        place.now(GangState.READY, "a job")
        place.drawn += 1
        self._learn(place, begun, answers)
        wrong = [answer for answer in answers if isinstance(answer, Fault)]
        refused = {answer.gang or "" for answer in wrong if answer.cause is Cause.WEIGHTS_MISSING}
        if ending := [answer for answer in wrong if faults.ends_gang(answer) or refused]:
            self._remove(place, str(ending[0]))
        for giver in refused:
            self._other_files(giver)
        return answers

    def _not_given(self, place: Place, error: BaseException) -> Fault:
        """The gang is as good as before, unless some of its ranks were given it and wait for the others."""
        if place.post.ranks > 1:
            self._remove(place, "not each of its ranks was given what the stage before has made")
        else:
            place.now(GangState.READY, "a job")
        return LostOnItsWay(Cause.GANG_DIED, faults.fault_of(error).detail)

    def _other_files(self, giver: str) -> None:
        """What was made there was refused. Which of the two gangs has files that were changed since, is not known."""
        self.refused.add(giver)
        for place in self._all():
            place.ends = self._why_ends(place)
            if place.ends and place.lock.acquire(blocking=False):
                self._leave(place)

    def _learn(self, place: Place, requests: Sequence[RenderRequest], answers: Sequence[Answer]) -> None:
        """What a step takes here, told by those that took all of theirs."""
        pairs = zip(answers, requests, strict=True)
        made = [(one, asked) for one, asked in pairs if not isinstance(one, Fault) and asked.resume is None]
        if (work := work_of([asked for _, asked in made])) > 0:
            pace_s = sum(one.seconds for one, _ in made) / work
            for other in self._alike(place):
                other.pace_s = pace_s
