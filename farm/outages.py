"""What is away just now. Each outage is logged once when it begins and once when it is over, however many meet it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass

from farm.errors import Fault
from farm.job import Cause

log = logging.getLogger("farm.outages")
FARM = ""  # the place of what everyone needs; any other place is a model
# Which probe looks at it, where the probe's own cause is another.
SEEN_BY = {
    Cause.SIGNER_FAILED: Cause.SIGNER_DOWN,
    Cause.TIMESTAMP_DOWN: Cause.SIGNER_DOWN,
    Cause.STORE_FULL: Cause.STORE_DOWN,
}


@dataclass(slots=True)
class Outage:
    detail: str
    since: float
    until: float  # before that nothing is leased there


class Outages:
    """Told by the work that meets them and by probes; several threads tell."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.lock = threading.Lock()
        self.standing: dict[tuple[str, Cause], Outage] = {}
        self.failing: dict[str, Cause] = {}  # probes, and what each found last
        self.doubted: dict[Cause, float] = {}  # met first at this time, perhaps by one job's own doing

    def met(self, place: str, fault: Fault, pause_s: float = 0.0) -> None:
        now = self.clock()
        with self.lock:
            known = self.standing.get((place, fault.cause))
            if known is None:
                self.standing[place, fault.cause] = Outage(fault.detail, now, now + pause_s)
                log.warning("%s: %s", fault.cause, fault.detail)
            else:
                known.detail, known.until = fault.detail, max(known.until, now + pause_s)

    def doubt(self, fault: Fault, pause_s: float, flying_since: float = float("inf")) -> None:
        """Work met what everyone needs; `flying_since` is when the oldest of the work still under way began. It is the
        whole farm's outage if a probe says the same, or if nothing got through for a while, nor may any more of what
        was under way at the first time; else the job that met it is left to wait alone."""
        now = self.clock()
        with self.lock:
            if fault.cause not in self.doubted:
                log.info("%s is met by a job: %s", fault.cause, fault.detail)
            first = self.doubted.setdefault(fault.cause, now)
            seen = SEEN_BY.get(fault.cause, fault.cause) in self.failing
        if seen or (now - first >= pause_s and flying_since > first):
            self.met(FARM, fault, pause_s)

    def through(self) -> None:
        """Something got through: what was met only by some is theirs."""
        with self.lock:
            self.doubted.clear()

    def probed(self, name: str, fault: Fault | None) -> None:
        """What a look at one thing everyone needs has found. It holds no work up: work says for itself why it waits."""
        with self.lock:
            before = self.failing.pop(name, None)
            if fault is not None:
                self.failing[name] = fault.cause
        if fault is not None:
            self.met(FARM, fault)
        if before is not None:  # it is seen again: no pause that work asked for holds it up
            self._end([(FARM, before)], at_once=True)

    def over(self, places: Collection[str], but: Collection[Cause] = ()) -> None:
        """Work got through in these places, or there is none left to try: what was tried again has passed."""
        self._end([(place, cause) for place, cause in self._keys() if place in places and cause not in but])

    def come(self, place: str, cause: Cause) -> None:
        """What was away is seen again: nobody waits for the next try."""
        with self.lock:
            outage = self.standing.pop((place, cause), None)
        if outage is not None:
            log.info("%s is over after %.0f s", cause, self.clock() - outage.since)

    def places(self) -> set[str]:
        return {place for place, _ in self._keys()}

    def blocks(self, place: str, but: Collection[Cause] = ()) -> bool:
        now = self.clock()
        with self.lock:
            met = self.standing.items()
            return any(at == place and cause not in but and now < outage.until for (at, cause), outage in met)

    def words(self) -> str:
        """The causes that hold up the whole farm, then the details: "signer_down, ray_gone: ..."; or nothing."""
        with self.lock:
            found = {str(cause): outage.detail for (place, cause), outage in self.standing.items() if place == FARM}
        return f"{', '.join(found)}: {'; '.join(found.values())}" if found else ""

    def _keys(self) -> list[tuple[str, Cause]]:
        with self.lock:
            return list(self.standing)

    def _end(self, keys: Collection[tuple[str, Cause]], at_once: bool = False) -> None:
        now = self.clock()
        with self.lock:
            for key in keys:
                outage, probed = self.standing.get(key), key[0] == FARM and key[1] in self.failing.values()
                if outage is not None and (at_once or now >= outage.until) and not probed:
                    del self.standing[key]
                    log.info("%s is over after %.0f s", key[1], now - outage.since)
