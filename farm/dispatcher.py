"""The loop: choose a lane, lease its jobs, run them; meanwhile keep leases alive, take back lost ones, seal events."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial

from farm import audit, events, quarantine, scheduler, waiting
from farm.errors import Fault
from farm.job import CAUSES, OF_MODEL, Cause, Payer
from farm.outages import FARM, SEEN_BY, Outages
from farm.pipeline import Group, Ports
from farm.ports import Lease
from farm.purge import OVERLAP_S, purge
from farm.rules import Herald
from farm.steering import Steering
from farm.suspects import SHARED, Suspects
from farm.teller import Teller

log = logging.getLogger("farm.dispatcher")
IDLE_S = 0.1
TIDY_S = 1.0
PROBE_S = 5.0
SIGN_HEAD_S = 60.0
LACKING_S = 300.0  # a model whose files are not seen here is tried so often: its node may have them


@dataclass(slots=True)
class InFlight:
    leases: list[Lease]
    since: float
    gone: set[int] = field(default_factory=set)  # jobs whose leases are lost: they are not drawn any further


class Dispatcher:
    def __init__(
        self,
        ports: Ports,
        *,
        group: int = 4,
        workers: int = 2,
        lease_s: float = 30.0,
        rules: Herald | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.ports, self.queue = ports, ports.queue
        self.group, self.workers, self.lease_s, self.clock = group, workers, lease_s, clock
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{os.urandom(4).hex()}"
        self.stopping, self.ended = threading.Event(), threading.Event()
        self.woken = threading.Event()  # a group has ended, or it is time to stop
        self.head_signed_at = 0.0
        self.flights: dict[Future[Group], InFlight] = {}
        self.outages, self.suspects = Outages(clock), Suspects()
        self.teller = Teller(ports)
        self.herald = rules or Herald(self.queue.engine, ports.gate)
        self.steering = Steering(self.queue, ports.renderer, clock)
        self.probed = threading.Event()  # once: before that nothing is known, and nothing said
        self.purged_from = 0.0
        self.lacking: set[str] = set()  # models without files

    def run(self) -> None:
        """Until `stop()`: what runs then is finished first."""
        deeds = {
            "heart": (TIDY_S, [self._beat]),
            "keeper": (
                TIDY_S,
                [self.herald.announce, self._expire, self._seal, self._steer, self._tell_gangs, self._see_files],
            ),
            "cleaner": (TIDY_S, [self._tidy, self._purge, self._end_quarantine]),
            "teller": (TIDY_S, [self.teller.tell]),
            "prober": (PROBE_S, [self._probe, self._sign_head]),
        }
        threads = [
            threading.Thread(target=self._repeat, args=given, name=name, daemon=True) for name, given in deeds.items()
        ]
        for thread in threads:
            thread.start()
        with ThreadPoolExecutor(self.workers, thread_name_prefix="group") as pool:
            while not self.stopping.is_set():
                self.woken.clear()
                if not self._survive(lambda: self.step(pool)):
                    self.woken.wait(IDLE_S)
        self.ended.set()
        for thread in threads:
            thread.join(timeout=TIDY_S * 2)
        self._repeat(0.0, [self._forget])  # what the last groups have left, too

    def stop(self) -> None:
        self.stopping.set()
        self.woken.set()

    def step(self, pool: ThreadPoolExecutor) -> bool:
        """Lease and start one group if there is room and work; true if it did."""
        self._land()
        if len(self.flights) >= self.workers or self.outages.blocks(FARM) or not self.herald.ready:
            return False
        leases = self._lease()
        if not leases:
            if not self.flights:  # nothing is left that could show whether they still stand
                self.outages.over(self.outages.places())
            return False
        flight = InFlight(leases, self.clock())
        future = pool.submit(self._fly, flight)
        self.flights[future] = flight
        future.add_done_callback(lambda _: self.woken.set())
        return True

    def _lease(self) -> list[Lease]:
        flying = self._flying()
        jobs = [lease.job_id for leases in flying for lease in leases]
        for lane in self.steering.lanes(self.queue.lanes(), flying):
            if self.outages.blocks(lane.model):
                continue
            seconds = scheduler.lease_seconds(self.lease_s, lane.shape_key, self.group)
            leases = self.queue.claim(lane.id, self.owner, self.group, seconds, jobs)
            if leases:
                return leases
        return []

    def _flying(self) -> list[list[Lease]]:
        return [flight.leases for flight in list(self.flights.values())]

    def _fly(self, flight: InFlight) -> Group:
        group = Group(self.ports, flight.gone, self.teller.listen(flight.leases), self.suspects)
        try:
            group.run(flight.leases)
        except Fault as fault:  # the queue itself could not be written: the leases will run out
            group.faults.append(fault)
        for cause in {SEEN_BY.get(fault.cause, fault.cause) for fault in group.faults} & self.ports.probes.keys():
            self._ask(cause)  # at once, in this thread: is it away, or is it one job's own trouble?
        return group

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

    def _learn(self, model: str, group: Group) -> None:
        if group.published:
            self.outages.through()
        oldest = min((flight.since for flight in self.flights.values()), default=float("inf"))
        for fault in group.faults:
            if fault.cause in OF_MODEL:
                unseen = fault.cause is Cause.WEIGHTS_MISSING and model in self.lacking
                self.outages.met(model, fault, LACKING_S if unseen else self.ports.retry_s)
            elif fault.cause in SHARED:
                self.outages.doubt(fault, self.ports.retry_s, oldest)
            elif fault.cause is not Cause.LEASE_LOST:
                log.warning("%s: %s", fault.cause, fault.detail)
        if group.published:
            self.outages.over([FARM, model], but={fault.cause for fault in group.faults})

    def _repeat(self, every_s: float, deeds: Sequence[Callable[[], None]]) -> None:
        """Until the last group has landed. What goes wrong is logged and tried again: a thread that ended
        in silence would let every lease run out."""
        while True:
            for deed in deeds:
                try:
                    self._look(deed.__name__, deed)
                except Exception:
                    log.exception("%s failed and is tried again", deed.__name__)
            if self.ended.wait(every_s):
                return

    def _look(self, name: str, deed: Callable[[], object]) -> None:
        """Do it; an outage that it meets, or meets no more, is told."""
        away = None
        try:
            deed()
        except Fault as fault:
            if CAUSES[fault.cause] is not Payer.ENVIRONMENT:
                raise
            away = fault
        finally:
            self.outages.probed(name, away)

    def _probe(self) -> None:
        for cause in self.ports.probes:
            self._ask(cause)
        self.probed.set()

    def _ask(self, cause: Cause) -> None:
        self._look(cause, partial(_sure, cause, self.ports.probes[cause]))

    def _beat(self) -> None:
        for flight in list(self.flights.values()):
            first = flight.leases[0]
            seconds = scheduler.lease_seconds(self.lease_s, first.spec.shape_key, len(flight.leases))
            pairs = [(lease.job_id, lease.attempt) for lease in flight.leases]
            held = self.queue.heartbeat(self.owner, pairs, seconds)
            flight.gone |= {lease.job_id for lease in flight.leases} - held

    def _expire(self) -> None:
        self.queue.expire()

    def _tidy(self) -> None:
        """What may take long; nobody waits for it, neither an expired lease nor a reader of events."""
        self.queue.follow()
        self.queue.finish_cancelled()
        self.queue.collect_abandoned()
        self.queue.forget_silent()
        self._forget()

    def _purge(self) -> None:
        """Illegal pictures leave the store at once."""
        began = self.clock()
        if gone := purge(self.queue.engine, self.ports.store, self.purged_from):
            log.warning("%d files of illegal pictures left the store", gone)
        self.purged_from = began - OVERLAP_S

    def _end_quarantine(self) -> None:
        quarantine.expire(self.queue.engine, self.ports.store, self.clock())

    def _forget(self) -> None:
        """What was kept of jobs that are not drawn any more."""
        self.queue.forget_steps()
        if self.ports.scratch is not None and (kept := self.ports.scratch.jobs()):
            for job_id in kept - self.queue.unended(kept):
                self.ports.scratch.drop(job_id)

    def _seal(self) -> None:
        events.seal(self.queue.engine)
        audit.seal(self.queue.engine)
        if self.probed.is_set():
            words = self.outages.words()
            detail = words or f"{len(self.flights)} groups in flight"
            self.queue.beat(self.owner, "dispatcher", "waiting" if words else "ready", detail)

    def _steer(self) -> None:
        """An outage takes no demand back: it may be over long before a gang is there."""
        self.steering.steer(self.queue.lanes(), self._flying())

    def _tell_gangs(self) -> None:
        renderer = self.ports.renderer
        self.queue.tell_gangs(self.owner, renderer.status(), renderer.nodes())

    def _see_files(self) -> None:
        """A model whose files have come is tried at once."""
        lacking = waiting.lacking(asdict(place) | {"age_s": 0.0} for place in self.ports.renderer.status())
        for model in self.lacking - set(lacking):
            self.outages.come(model, Cause.WEIGHTS_MISSING)
        self.lacking = set(lacking)

    def _sign_head(self) -> None:
        if self.clock() >= self.head_signed_at + SIGN_HEAD_S:
            audit.sign_head(self.queue.engine, self.ports.signer)
            self.head_signed_at = self.clock()

    def _survive(self, step: Callable[[], bool]) -> bool:
        """A database that is away delays the loop; it does not end it."""
        try:
            return step()
        except Fault as fault:
            if CAUSES[fault.cause] is not Payer.ENVIRONMENT:
                raise
            self.outages.met(FARM, fault)
            self.stopping.wait(TIDY_S)
            return False


def _sure(cause: Cause, probe: Callable[[], object]) -> None:
    """A probe that fails in its own way has not found what it looks for either."""
    try:
        probe()
    except Exception as error:
        if isinstance(error, Fault) and CAUSES[error.cause] is Payer.ENVIRONMENT:
            raise
        raise Fault(cause, f"{type(error).__name__}: {error}") from error
