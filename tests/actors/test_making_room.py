"""Two models, and room for a gang of one of them: a dispatcher, its steering and real gangs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from actors import gang
from actors.pool import Pool
from farm.config import PoolSpec, Settings
from farm.dispatcher import Dispatcher
from farm.job_queue import NewJob
from tests.actors.conftest import CARDS, until
from tests.test_pipeline import FakePorts, dispatch_until, fake_ports, spec, states, submit

pytestmark = pytest.mark.slow


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[FakePorts]:
    yield from fake_ports(tmp_path)


def test_each_model_has_its_turn(settings: Settings, ports: FakePorts) -> None:
    """Though neither has its files on this machine: its nodes may."""
    room = ray.cluster_resources()["CPU"] if ray.is_initialized() else 2.0
    pools = tuple(PoolSpec(model=model, cpus=room) for model in ("flat", "other"))
    mine = settings.model_copy(update={"pools": pools})
    pool = Pool(mine, CARDS, shard="tests.actors.fakes:load_flat", room_s=1.0)
    pool.start()
    served: list[str] = []
    draw = pool.render

    def render(requests, *rest):  # type: ignore[no-untyped-def]
        answers = draw(requests, *rest)
        served.append(requests[0].spec.model)
        return answers

    pool.render = render  # type: ignore[method-assign]
    try:
        submit(ports, *(NewJob(line=line, spec=spec(seed=line, steps=2, model="flat")) for line in range(1, 9)))
        late = submit(ports, *(NewJob(line=line, spec=spec(seed=line, steps=2, model="other")) for line in (1, 2, 3)))
        ports.queue.set_priority(late, 5, "ann")
        real = replace(ports, renderer=pool, retry_s=1.0)  # type: ignore[arg-type]
        dispatcher = Dispatcher(real, group=1, workers=4)
        dispatch_until(dispatcher, lambda: states(ports) == {"published": 11}, seconds=100)
        changes = sum(one != other for one, other in itertools.pairwise(served))
        assert 1 <= changes <= 3
        assert len(gang.standing()) == 1
    finally:
        pool.close(remove=True)
    until(lambda: not gang.standing() if ray.is_initialized() else True)
