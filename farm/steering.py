"""What the dispatcher tells the renderer: how much waits for each model, and which gang is to make room for another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from farm import drains, scheduler
from farm.job_queue import JobQueue
from farm.leasing import LaneView
from farm.ports import Lease, Renderer
from farm.scheduler import BURST, STANDING, Scene


class Steering:
    """Its memory of earlier choices keeps gangs from being exchanged too often. One thread steers, another asks for
    lanes."""

    def __init__(self, queue: JobQueue, renderer: Renderer, clock: Callable[[], float]) -> None:
        self.queue, self.renderer, self.clock = queue, renderer, clock
        self.jobs: Mapping[int, int] = {}
        self.pressed: dict[str, str] = {}  # gang, until it is gone, to the model it makes room for
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
        there = {one.gang for one in scene.gangs}
        self.pressed = {gang: model for gang, model in self.pressed.items() if gang in there and scene.waiting(model)}
        self.stood |= {one.model: scene.now for one in scene.gangs if one.state in STANDING}
        if (found := scheduler.press(self._scene(lanes, flights))) is not None:
            self.pressed[found.gang] = found.model
            self.urgent = [*self.urgent, scene.now][-BURST:] if found.urgent else self.urgent
        flying = [lease.spec.shape_key for leases in flights for lease in leases]
        drained = drains.drained(self.queue.engine)
        self.renderer.need(scheduler.demands(lanes, self.jobs, flying), dict(self.pressed), drained)

    def _scene(self, lanes: Sequence[LaneView], flights: Sequence[Sequence[Lease]]) -> Scene:
        return Scene(
            lanes,
            self.jobs,
            self.renderer.status(),
            self.clock(),
            running=Counter(lease.project_id for leases in flights for lease in leases),
            flights=Counter(leases[0].spec.model for leases in flights),
            pressed=dict(self.pressed),
            urgent=tuple(self.urgent),
            stood=dict(self.stood),
        )
