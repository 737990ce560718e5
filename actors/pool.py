"""The farm's renderer: the gangs of every pool, built when a job asks for one, rebuilt when they are lost.

A pool has as many places as it may have gangs. A job goes to a place of its model whose gang is warm and free; where
all are busy, another gang is built if a place is empty and the cluster has room.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from actors import cluster, faults, gang, room
from actors.bench import STRIKES, Form
from actors.gang import Gang
from actors.messages import Order
from actors.models import lacking
from actors.places import Place, post_of
from actors.plan import pools_of
from farm.config import Settings
from farm.errors import Fault
from farm.job import CAUSES, Cause, Payer
from farm.ports import GangState, GangStatus, ModelCard, Rendered, RenderRequest, Step, ignore
from farm.scratch import SCRATCH, Scratch

log = logging.getLogger("farm.pool")
ROOM_S = 5.0
POLL_S = 0.1
TEND_S = 5.0
LOOK_S = 20.0  # whether the files of a model have come or gone: headers alone are read
FULL_S = 30.0  # the cluster was found full: no further gang is tried for so long


def limit_s(requests: Sequence[RenderRequest]) -> float:
    """Far longer than the slowest sound device takes; past it the gang hangs."""
    work = sum(request.spec.steps * request.spec.width * request.spec.height / 1e6 for request in requests)
    return 300.0 + 60.0 * work


class Pool:
    def __init__(
        self,
        settings: Settings,
        cards: Mapping[str, ModelCard],
        *,
        shard: str = "actors.rank:load_shard",
        limit: Callable[[Sequence[RenderRequest]], float] = limit_s,
        room_s: float = ROOM_S,
    ) -> None:
        self.settings, self.limit, self.room_s = settings, limit, room_s
        self.places: dict[str, list[Place]] = {}  # by model
        for pool in pools_of(settings, cards):
            post = post_of(pool, cards[pool.model], settings, shard)
            self.places.setdefault(pool.model, []).extend(Place(number, post, pool) for number in range(pool.max))
        self.scratch = Scratch(settings.home / SCRATCH)
        self.swept, self.closed = False, threading.Event()
        self.freed = threading.Condition()

    def render(
        self,
        requests: Sequence[RenderRequest],
        cancelled: Callable[[], bool],
        watch: Callable[[Sequence[Step]], None] = ignore,
    ) -> list[Rendered | Fault]:
        place = self._place(requests[0].spec.model, cancelled)
        job = requests[0].job_id
        try:
            answers = self._render(place, tuple(requests), cancelled, watch)
            self._judge(place, job, answers)
            return answers
        except Exception as error:
            fault = self._lost(place, error)
            self._judge(place, job, [fault])
            raise fault from error
        finally:
            self._leave(place)

    def status(self) -> list[GangStatus]:
        return [place.status() for place in self._all()]

    def start(self) -> None:
        """Tend the pools, and see whether their files are there, until `close`."""
        for name, deed in (("pool", self._keep_tending), ("files", self._keep_looking)):
            threading.Thread(target=deed, name=name, daemon=True).start()

    def tend(self) -> None:
        """Build the gangs that are kept warm, and let go of those that are not and had no job for long. What is in use
        is left alone."""
        for place in self._all():
            if not place.lock.acquire(blocking=False):
                continue
            try:
                if place.number < place.spec.min and not place.form.rests_at(time.time()):
                    self._warm(place)
                elif place.state is GangState.READY and time.time() - place.since > place.spec.idle_s:
                    self._remove(place, f"no job for {place.spec.idle_s:g} s")
            finally:
                place.lock.release()

    def _keep_tending(self) -> None:
        while not self.closed.wait(TEND_S):
            self.tend()

    def look(self) -> None:
        """Which pools have no files here. A job is tried nevertheless, now and then: its node may have them."""
        posts = {place.post.pool: place.post for place in self._all()}
        told = {name: lacking(post.card, Path(post.models) if post.models else None) for name, post in posts.items()}
        for place in self._all():
            place.lacks = told[place.post.pool]

    def _keep_looking(self) -> None:
        while True:
            try:
                self.look()
            except Exception:
                log.exception("the models' files could not be looked at")
            if self.closed.wait(LOOK_S):
                return

    def _warm(self, place: Place) -> None:
        try:
            self._join(place)
            if place.gang is None and time.time() - place.full > FULL_S:
                place.gang = self._found(place) or self._built(place)
                place.full = time.time() if place.gang is None else 0.0
            if place.gang is not None:
                self._ready(place)
        except Exception as error:
            before, fault = place.waits_for, self._lost(place, error)
            if str(fault) != before:  # once
                log.warning("no warm gang of %s: %s", place.post.pool, fault)
            place.full = 0.0 if fault.cause is Cause.RAY_GONE else time.time()  # which may be back any moment

    def close(self, *, remove: bool = False) -> None:
        """Leave Ray. The gangs stay warm for the next dispatcher unless they are to be removed."""
        self.closed.set()
        for place in self._all():
            if remove and place.gang is not None:
                self._remove(place)
            place.gang = None
        cluster.disconnect()

    def _all(self) -> list[Place]:
        return [place for places in self.places.values() for place in places]

    def _place(self, model: str, cancelled: Callable[[], bool]) -> Place:
        """One of the model's, locked: a warm one, else an empty one where a further gang finds room."""
        if model not in self.places:
            raise Fault(Cause.WEIGHTS_MISSING, f"this farm has no pool for {model!r}")
        while not cancelled():
            self._all_rest(self.places[model])
            place, first = self._free(self.places[model])
            if place is not None:
                if place.gang is not None or first or self._further(place):
                    return place
                self._leave(place)
            with self.freed:
                self.freed.wait(POLL_S)
        raise Fault(Cause.LEASE_LOST, "given up while it waited for its gang")

    def _free(self, places: Sequence[Place]) -> tuple[Place | None, bool]:
        """Locked, and whether it is the first of its model: that one may press others out, and waits where there is no
        room at all. An empty one is from now on starting, so that nobody else takes himself for the first."""
        now = time.time()
        fit = [place for place in places if not place.form.rests_at(now)]
        able = [place for place in fit if place.gang is not None or now - place.full > FULL_S]
        with self.freed:
            none = all(place.state in (GangState.GONE, GangState.BENCHED) for place in places)
            for place in sorted(able, key=lambda place: place.gang is None):
                if place.lock.acquire(blocking=False):
                    if place.gang is None:
                        place.now(GangState.STARTING, "room in the cluster")
                    return place, none
        return None, False

    def _all_rest(self, places: Sequence[Place]) -> None:
        """Then no job waits inside: it goes back to the queue, with the reason, and pays nothing."""
        now = time.time()
        if places and all(place.form.rests_at(now) for place in places):
            soonest = min(places, key=lambda place: place.form.until)
            raise Fault(Cause.NO_ROOM, f"every gang of {soonest.post.card.name} rests: {soonest.waits_for}")

    def _leave(self, place: Place) -> None:
        """A saturated gang does not idle until somebody looks again."""
        with self.freed:
            place.lock.release()
            self.freed.notify_all()

    def _further(self, place: Place) -> bool:
        """Not while another one of the model waits for room: it came first."""
        others = (other for other in self.places[place.post.card.name] if other is not place)
        if any(other.state is GangState.STARTING and other.gang is None for other in others):
            place.now(GangState.GONE, "a job")
            return False
        try:
            self._join(place)
            place.gang = self._found(place) or self._built(place)
        except Exception as error:
            log.warning("no further gang of %s: %s", place.post.pool, self._lost(place, error))
        if place.gang is None:
            place.full = time.time()
            place.now(GangState.GONE, "room in the cluster")
        return place.gang is not None

    def _render(
        self,
        place: Place,
        requests: tuple[RenderRequest, ...],
        cancelled: Callable[[], bool],
        watch: Callable[[Sequence[Step]], None],
    ) -> list[Rendered | Fault]:
        self._join(place)
        one = self._ready(place)
        place.now(GangState.BUSY, f"{len(requests)} pictures")
        begun = tuple(replace(request, resume=self.scratch.read(request.job_id)) for request in requests)
        order = Order(os.urandom(8).hex(), begun, self.limit(requests), self.settings.save_every)
        answers = one.render(order, cancelled, watch, self.scratch.write)
        place.now(GangState.READY, "a job")
        for request, answer in zip(requests, answers, strict=True):
            if isinstance(answer, Fault) and answer.cause is not Cause.LEASE_LOST:
                self.scratch.drop(request.job_id)  # it may be what is wrong
        ending = [answer for answer in answers if isinstance(answer, Fault) and faults.ends_gang(answer)]
        if ending:
            self._remove(place, str(ending[0]))
        return answers

    def _judge(self, place: Place, job: int, answers: Sequence[Rendered | Fault]) -> None:
        if any(isinstance(answer, Rendered) for answer in answers):
            place.form = Form()
        ended = [answer for answer in answers if isinstance(answer, Fault) and CAUSES[answer.cause] is Payer.GANG]
        if not ended or len(ended) < len(answers):
            return
        now = time.time()
        place.form = place.form.after(job, now)
        if place.form.rests_at(now):
            words = f"rested for {place.form.until - now:.0f} s after {STRIKES} jobs in a row ended it: {ended[0]}"
            place.now(GangState.BENCHED, words)
            log.warning("a gang of %s is %s", place.post.pool, words)

    def _join(self, place: Place) -> None:
        """Handles do not outlive the connection they were made under, and another head knows nothing of the gang."""
        connection = cluster.connect(self.settings)
        if connection != place.connection:
            place.gang, place.connection = None, connection

    def _ready(self, place: Place) -> Gang:
        """The place's gang with its weights in place."""
        if place.gang is None:
            place.gang = self._found(place) or self._pressed(place)
        if place.state is not GangState.READY:
            place.now(GangState.STARTING, "its weights")
            place.gang.load(place.post.load_s)
            place.now(GangState.READY, "a job")
            log.info("gang %s is ready", place.gang.id)
        return place.gang

    def _found(self, place: Place) -> Gang | None:
        self._sweep()
        place.now(GangState.STARTING, "room in the cluster")
        return gang.attach(place.post, [other.gang.id for other in self._all() if other.gang is not None])

    def _built(self, place: Place) -> Gang | None:
        return gang.build(place.post, room.gpus_of(place.post), self.room_s)

    def _pressed(self, place: Place) -> Gang:
        """Where there is no room, a gang that nobody uses makes some; then our idle one that was not used for longest.

        Those of other dispatchers are theirs.
        """
        while (built := self._built(place)) is None:
            wanted = room.words(place.post)
            if not room.ever_fits(place.post):
                raise Fault(Cause.NO_ROOM, f"these nodes are too small for {wanted}: see `farm pool plan`")
            if not gang.remove_one_unused() and not self._evict(place):
                others = ", ".join(gang.standing()) or "none"
                raise Fault(Cause.NO_ROOM, f"no node has room for {wanted}; gangs in use: {others}")
        return built

    def _evict(self, place: Place) -> bool:
        idle = (other for other in self._all() if other is not place and other.gang is not None)
        for other in sorted(idle, key=lambda other: other.since):
            if other.lock.acquire(blocking=False):
                try:
                    self._remove(other, f"room for {place.post.card.name}")
                finally:
                    other.lock.release()
                return True
        return False

    def _sweep(self) -> None:
        if not self.swept:
            for gang_id in gang.sweep(time.time()):
                log.warning("removed what was left of gang %s", gang_id)
            self.swept = True

    def _lost(self, place: Place, error: Exception) -> Fault:
        """What it means; a gang that cannot be trusted goes. Ray lost is told from a gang lost by asking for Ray."""
        fault = faults.fault_of(error, place.gang.id if place.gang else None)
        before = place.connection
        try:
            self._join(place)
        except Fault as gone:
            fault, place.gang = gone, None
        else:
            if before != place.connection:
                fault = Fault(Cause.RAY_GONE, f"Ray was restarted: {fault.detail}")
        if place.gang is not None and (faults.ends_gang(fault) or place.state is GangState.STARTING):
            self._remove(place, str(fault))
        elif place.gang is None:
            place.now(GangState.GONE, str(fault))
        else:
            place.now(GangState.READY, "a job")
        return fault

    def _remove(self, place: Place, why: str = "") -> None:
        one, place.gang = place.gang, None
        place.now(GangState.GONE, why or "a job")
        if one is None:
            return
        log.warning("gang %s removed: %s", one.id, why or "the pool closes")
        try:
            one.remove()
        except Exception as error:
            log.warning("gang %s could not be removed, the next pool sweeps it: %s", one.id, faults.fault_of(error))
            self.swept = False
