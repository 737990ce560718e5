"""The loop: choose a lane, lease its jobs, run them; meanwhile keep leases alive, take back lost ones, seal events."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from farm import audit, events, scheduler
from farm.errors import Fault
from farm.job import CAUSES, Cause, Payer
from farm.pipeline import Group, Ports
from farm.ports import Lease

log = logging.getLogger("farm.dispatcher")
IDLE_S = 0.1
TIDY_S = 1.0
SIGN_HEAD_S = 60.0


@dataclass(slots=True)
class InFlight:
    leases: list[Lease]
    lost: threading.Event = field(default_factory=threading.Event)  # every lease of the group is gone: stop rendering


@dataclass(slots=True)
class Outage:
    """Something everyone needs is away: nothing is leased until it is tried again."""

    cause: Cause
    detail: str
    until: float


class Dispatcher:
    def __init__(
        self,
        ports: Ports,
        *,
        group: int = 4,
        workers: int = 2,
        lease_s: float = 30.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.ports, self.queue = ports, ports.queue
        self.group, self.workers, self.lease_s, self.clock = group, workers, lease_s, clock
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{os.urandom(4).hex()}"
        self.stopping, self.ended = threading.Event(), threading.Event()
        self.head_signed_at = 0.0
        self.flights: dict[Future[list[Fault]], InFlight] = {}
        self.outages: dict[str, Outage] = {}  # by model, or "" for the whole farm
        self.warm: set[str] = set()

    def run(self) -> None:
        """Until `stop()`: what runs then is finished first."""
        threads = [
            threading.Thread(target=self._repeat, args=(deeds,), name=name, daemon=True)
            for name, deeds in {"heart": [self._beat], "keeper": [self._tidy, self._seal, self._sign_head]}.items()
        ]
        for thread in threads:
            thread.start()
        with ThreadPoolExecutor(self.workers, thread_name_prefix="group") as pool:
            while not self.stopping.is_set():
                if not self._survive(lambda: self.step(pool)):
                    self.stopping.wait(IDLE_S)
        self.ended.set()
        for thread in threads:
            thread.join(timeout=TIDY_S * 2)

    def stop(self) -> None:
        self.stopping.set()

    def step(self, pool: ThreadPoolExecutor) -> bool:
        """Lease and start one group if there is room and work; true if it did."""
        self._land()
        if len(self.flights) >= self.workers or self._outage("") is not None:
            return False
        leases = self._lease()
        if not leases:
            return False
        flight = InFlight(leases)
        self.flights[pool.submit(self._fly, flight)] = flight
        return True

    def _lease(self) -> list[Lease]:
        running: Counter[str] = Counter(lease.project_id for flight in self.flights.values() for lease in flight.leases)
        lanes = [lane for lane in self.queue.lanes() if self._outage(lane.model) is None]
        for lane in scheduler.order(lanes, running, self.warm, self.clock()):
            seconds = scheduler.lease_seconds(self.lease_s, lane.shape_key, self.group)
            leases = self.queue.claim(lane.id, self.owner, self.group, seconds)
            if leases:
                return leases
        return []

    def _fly(self, flight: InFlight) -> list[Fault]:
        group = Group(self.ports, flight.lost.is_set)
        try:
            group.run(flight.leases)
        except Fault as fault:  # the queue itself could not be written: the leases will run out
            group.faults.append(fault)
        return group.faults

    def _land(self) -> None:
        for future in [future for future in self.flights if future.done()]:
            flight = self.flights.pop(future)
            error = future.exception()
            if error is not None:
                self._crashed(flight.leases, error)
                continue
            self._learn(flight.leases[0].spec.model, future.result())

    def _crashed(self, leases: Sequence[Lease], error: BaseException) -> None:
        """An error nobody foresaw counts against the job, with its text, so that it cannot loop for ever."""
        log.error("a group of %d jobs crashed", len(leases), exc_info=error)
        fault = Fault(Cause.RENDER_ERROR, f"{type(error).__name__}: {error}")
        for lease in leases:
            self.queue.fault(lease, fault, gang=None, retry_s=self.ports.retry_s)

    def _learn(self, model: str, faults: Sequence[Fault]) -> None:
        if not faults:
            self.warm.add(model)
        until = self.clock() + self.ports.retry_s
        for fault in faults:
            log.warning("%s: %s", fault.cause, fault.detail)
            if CAUSES[fault.cause] is Payer.ENVIRONMENT and fault.cause is not Cause.LEASE_LOST:
                place = model if fault.cause is Cause.WEIGHTS_MISSING else ""
                self.outages[place] = Outage(fault.cause, fault.detail, until)

    def _outage(self, place: str) -> Outage | None:
        outage = self.outages.get(place)
        if outage is not None and self.clock() >= outage.until:
            del self.outages[place]
            return None
        return outage

    def _repeat(self, deeds: Sequence[Callable[[], None]]) -> None:
        """Until the last group has landed. What goes wrong is logged and tried again: a thread that ended
        in silence would let every lease run out."""
        while not self.ended.wait(TIDY_S):
            for deed in deeds:
                try:
                    deed()
                except Exception:
                    log.exception("%s failed and is tried again", deed.__name__)

    def _beat(self) -> None:
        for flight in list(self.flights.values()):
            first = flight.leases[0]
            seconds = scheduler.lease_seconds(self.lease_s, first.spec.shape_key, len(flight.leases))
            pairs = [(lease.job_id, lease.attempt) for lease in flight.leases]
            if not self.queue.heartbeat(self.owner, pairs, seconds):
                flight.lost.set()

    def _tidy(self) -> None:
        self.queue.expire()
        self.queue.finish_cancelled()
        self.queue.collect_abandoned()

    def _seal(self) -> None:
        events.seal(self.queue.engine)
        audit.seal(self.queue.engine)
        outage = self.outages.get("")
        waits = outage is not None and self.clock() < outage.until
        detail = f"{outage.cause}: {outage.detail}" if outage and waits else f"{len(self.flights)} groups in flight"
        self.queue.beat(self.owner, "dispatcher", "waiting" if waits else "ready", detail)

    def _sign_head(self) -> None:
        if self.clock() >= self.head_signed_at + SIGN_HEAD_S:
            self.head_signed_at = self.clock()
            audit.sign_head(self.queue.engine, self.ports.signer)

    def _survive(self, step: Callable[[], bool]) -> bool:
        """A database that is away delays the loop; it does not end it."""
        try:
            return step()
        except Fault as fault:
            if CAUSES[fault.cause] is not Payer.ENVIRONMENT:
                raise
            log.warning("%s: %s", fault.cause, fault.detail)
            self.stopping.wait(TIDY_S)
            return False
