"""What the dispatcher tells the renderer: how much waits for each model, and which gangs make room for another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from farm import drains, pressing, scheduler
from farm.job_queue import JobQueue
from farm.leasing import LaneView
from farm.ports import Lease, Renderer
from farm.pressing import BURST, Try
from farm.scheduler import Scene


class Steering:
    """Its memory of earlier choices keeps gangs from being exchanged too often. One thread steers, another asks for
    lanes."""

    def __init__(self, queue: JobQueue, renderer: Renderer, clock: Callable[[], float]) -> None:
        self.queue, self.renderer, self.clock = queue, renderer, clock
        self.jobs: Mapping[int, int] = {}
        self.tries: dict[str, Try] = {}  # pool to what was done to make room for a gang of it
        self.urgent: list[float] = []
        self.stood: dict[str, float] = {}

    def lanes(self, lanes: Sequence[LaneView], flights: Sequence[Sequence[Lease]]) -> list[LaneView]:
        """In the order in which they are to be tried, as far as is known; choices are made by `steer` alone."""
        if not lanes:
            return []
        if fresh := [lane for lane in lanes if lane.id not in self.jobs]:
            counted = self.queue.backlog(fresh)
            self.jobs = {**self.jobs, **counted}
        return scheduler.order(self._scene(lanes, flights))

    def steer(self, lanes: Sequence[LaneView], flights: Sequence[Sequence[Lease]]) -> None:
        self.jobs = self.queue.backlog(lanes)
        scene = self._scene(lanes, flights)
        self.tries = pressing.left(self.tries, scene)
        self.stood |= {model: scene.now for model in {one.model for one in scene.gangs} if scene.warm(model)}
        scene = self._scene(lanes, flights)
        if (found := pressing.press(scene)) is not None:
            self.tries = pressing.begun(self.tries, found, scene)
            self.urgent = [*self.urgent, scene.now][-BURST:] if found.urgent else self.urgent
        flying = [lease.spec.shape_key for leases in flights for lease in leases]
        drained = drains.drained(self.queue.engine)
        self.renderer.need(scheduler.demands(lanes, self.jobs, flying), self._pressed(), drained)

    def _scene(self, lanes: Sequence[LaneView], flights: Sequence[Sequence[Lease]]) -> Scene:
        return Scene(
            lanes,
            self.jobs,
            self.renderer.status(),
            self.clock(),
            running=Counter(lease.project_id for leases in flights for lease in leases),
            flights=Counter(leases[0].spec.model for leases in flights),
            pressed=self._pressed(),
            urgent=tuple(self.urgent),
            rests={pool: one.until for pool, one in self.tries.items()},
            stood=dict(self.stood),
        )

    def _pressed(self) -> dict[str, str]:
        return {gang: one.model for one in self.tries.values() for gang in one.gangs}
