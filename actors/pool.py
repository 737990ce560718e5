"""The farm's renderer: one warm gang a model, built when it is first needed, rebuilt when it is lost."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from actors import cluster, faults, gang
from actors.gang import Gang
from actors.messages import GangState, GangStatus, Order, Post
from farm.config import Settings
from farm.errors import Fault
from farm.job import Cause
from farm.ports import ModelCard, Rendered, RenderRequest

log = logging.getLogger("farm.pool")
ROOM_S = 5.0
LOAD_S = 1800.0
POLL_S = 0.1


def limit_s(requests: Sequence[RenderRequest]) -> float:
    """Far longer than the slowest sound device takes; past it the gang hangs."""
    work = sum(request.spec.steps * request.spec.width * request.spec.height / 1e6 for request in requests)
    return 300.0 + 60.0 * work


@dataclass(slots=True)
class Lane:
    """One model's gang, and the lock of whoever uses it."""

    post: Post
    lock: threading.Lock = field(default_factory=threading.Lock)
    gang: Gang | None = None
    connection: str = ""  # the one the gang's handles belong to
    state: GangState = GangState.GONE
    waits_for: str = "a job"
    since: float = field(default_factory=time.monotonic)

    def now(self, state: GangState, waits_for: str = "") -> None:
        self.state, self.waits_for, self.since = state, waits_for, time.monotonic()


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
        models = str(Path(settings.models).absolute()) if settings.models else ""
        posts = {
            name: Post(card, shard, models, settings.device, settings.offload, LOAD_S) for name, card in cards.items()
        }
        self.lanes = {name: Lane(post) for name, post in posts.items()}
        self.swept = False

    def render(self, requests: Sequence[RenderRequest], cancelled: Callable[[], bool]) -> list[Rendered | Fault]:
        lane = self._lane(requests[0].spec.model)
        if not self._mine(lane, cancelled):
            raise Fault(Cause.LEASE_LOST, "given up while it waited for its gang")
        try:
            return self._render(lane, tuple(requests), cancelled)
        except Exception as error:
            raise self._lost(lane, error) from error
        finally:
            lane.lock.release()

    def status(self) -> list[GangStatus]:
        now = time.monotonic()
        return [
            GangStatus(lane.gang.id if lane.gang else "", name, lane.state, lane.waits_for, now - lane.since)
            for name, lane in sorted(self.lanes.items())
        ]

    def close(self, *, remove: bool = False) -> None:
        """Leave Ray. The gangs stay warm for the next dispatcher unless they are to be removed."""
        for lane in self.lanes.values():
            if remove and lane.gang is not None:
                self._remove(lane)
            lane.gang = None
        cluster.disconnect()

    def _render(
        self, lane: Lane, requests: tuple[RenderRequest, ...], cancelled: Callable[[], bool]
    ) -> list[Rendered | Fault]:
        self._join(lane)
        one = self._gang(lane)
        lane.now(GangState.BUSY, f"{len(requests)} pictures")
        answers = one.render(Order(os.urandom(8).hex(), requests, self.limit(requests)), cancelled)
        lane.now(GangState.READY, "a job")
        ending = [answer for answer in answers if isinstance(answer, Fault) and faults.ends_gang(answer)]
        if ending:
            self._remove(lane, str(ending[0]))
        return answers

    def _join(self, lane: Lane) -> None:
        """Handles do not outlive the connection they were made under, and another head knows nothing of the gang."""
        connection = cluster.connect(self.settings)
        if connection != lane.connection:
            lane.gang, lane.connection = None, connection

    def _lane(self, model: str) -> Lane:
        if model not in self.lanes:
            raise Fault(Cause.WEIGHTS_MISSING, f"this farm has no model {model!r}")
        return self.lanes[model]

    def _mine(self, lane: Lane, cancelled: Callable[[], bool]) -> bool:
        while not lane.lock.acquire(timeout=POLL_S):
            if cancelled():
                return False
        return True

    def _gang(self, lane: Lane) -> Gang:
        """The lane's gang with its weights in place."""
        if lane.gang is None:
            self._sweep()
            lane.now(GangState.STARTING, "room in the cluster")
            lane.gang = gang.attach(lane.post) or self._build(lane)
            lane.now(GangState.STARTING, "its weights")
            lane.gang.load(lane.post.load_s)
            log.info("gang %s is ready", lane.gang.id)
        return lane.gang

    def _build(self, lane: Lane) -> Gang:
        """Where there is no room, a gang that nobody uses makes some; then our idle one that was not used for longest.

        Those of other dispatchers are theirs.
        """
        gpus = self._gpus()
        while (built := gang.build(lane.post, gpus, self.room_s)) is None:
            if not gang.remove_one_unused() and not self._evict(lane):
                others = ", ".join(gang.standing()) or "none"
                rank = f"a rank of {lane.post.card.name} (1 CPU, {gpus} GPU)"
                raise Fault(Cause.RAY_GONE, f"no node has room for {rank}; gangs in use: {others}")
        return built

    def _evict(self, lane: Lane) -> bool:
        idle = (other for other in self.lanes.values() if other is not lane and other.gang is not None)
        for other in sorted(idle, key=lambda other: other.since):
            if other.lock.acquire(blocking=False):
                try:
                    self._remove(other, f"room for {lane.post.card.name}")
                finally:
                    other.lock.release()
                return True
        return False

    def _gpus(self) -> int:
        import ray

        wanted = self.settings.device
        return int(wanted.startswith("cuda") or (wanted == "auto" and ray.cluster_resources().get("GPU", 0) > 0))

    def _sweep(self) -> None:
        if not self.swept:
            for gang_id in gang.sweep(time.time()):
                log.warning("removed what was left of gang %s", gang_id)
            self.swept = True

    def _lost(self, lane: Lane, error: Exception) -> Fault:
        """What it means; a gang that cannot be trusted goes. Ray lost is told from a gang lost by asking for Ray."""
        fault = faults.fault_of(error, lane.gang.id if lane.gang else None)
        before = lane.connection
        try:
            self._join(lane)
        except Fault as gone:
            fault, lane.gang = gone, None
        else:
            if before != lane.connection:
                fault = Fault(Cause.RAY_GONE, f"Ray was restarted: {fault.detail}")
        if lane.gang is not None and (faults.ends_gang(fault) or lane.state is GangState.STARTING):
            self._remove(lane, str(fault))
        elif lane.gang is None:
            lane.now(GangState.GONE, str(fault))
        return fault

    def _remove(self, lane: Lane, why: str = "") -> None:
        one, lane.gang = lane.gang, None
        lane.now(GangState.GONE, why or "a job")
        if one is None:
            return
        log.warning("gang %s removed: %s", one.id, why or "the pool closes")
        try:
            one.remove()
        except Exception as error:
            log.warning("gang %s could not be removed, the next pool sweeps it: %s", one.id, faults.fault_of(error))
            self.swept = False
