"""On a real Ray: what is heard of a gang at work, and where its jobs go on when it is lost."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from actors import gang, saved, watching
from actors.cards import TINY
from actors.pool import Pool
from farm.config import PoolSpec, Settings
from farm.errors import Fault
from farm.job import Cause
from farm.ports import Rendered, RenderRequest, Step
from tests.actors.conftest import CARDS, request_of, until
from tests.actors.test_ranks_together import never, request

pytestmark = pytest.mark.slow
WALKS = "tests.actors.fakes:load_walks"


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "ASK_S", 0.1)
    monkeypatch.setattr(watching, "SAVE_S", 0.1)


@pytest.fixture
def closing() -> Iterator[list[Pool]]:
    pools: list[Pool] = []
    yield pools
    for pool in pools:
        for place in pool._all():
            pool._remove(place)
    until(lambda: not gang.standing())


def long(job: int, steps: int = 80) -> RenderRequest:
    one = request_of("a", job)
    return replace(one, spec=replace(one.spec, steps=steps))


def kill_once_kept(pool: Pool, model: str, job: int, rank: int) -> threading.Thread:
    def kill() -> None:
        until(lambda: step_of(pool, job) >= 10, 60)
        one = pool.places[model][0].gang
        assert one is not None
        hello = gang._ask(one.ranks[rank], "hello").remote()
        import ray

        os.kill(ray.get(hello).pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def step_of(pool: Pool, job: int) -> int:
    data = pool.scratch.read(job)
    return int(saved.words_of(data)["step"]) if data else 0


def test_after_a_rank_was_killed_each_job_goes_on_from_where_it_stood(settings: Settings, closing: list[Pool]) -> None:
    pool = Pool(settings.model_copy(update={"save_every": 5}), CARDS, shard=WALKS, room_s=3.0)
    closing.append(pool)
    jobs = [long(7), long(8)]
    heard: list[Step] = []
    killer = kill_once_kept(pool, "flat", 7, 0)
    with pytest.raises(Fault) as caught:
        pool.render(jobs, never, heard.extend)
    killer.join()
    assert caught.value.cause is Cause.GANG_DIED
    assert {step.job_id for step in heard} == {7, 8}
    assert len({step.step for step in heard}) > 1
    at = step_of(pool, 7)
    assert at >= 10
    assert at == step_of(pool, 8)
    again: list[Step] = []
    third = long(9)
    answers = pool.render([*(replace(job, attempt=2) for job in jobs), third], never, again.extend)
    colours = [answer.frame.pixels[0] for answer in answers if isinstance(answer, Rendered)]
    assert colours == [at, at, 0], "each picture tells where it was begun"
    assert min(step.step for step in again if step.job_id == 7) > at
    assert {step.attempt for step in again if step.job_id == 7} == {2}


def test_a_killed_gang_of_two_ranks_ends_with_the_very_same_picture(settings: Settings, closing: list[Pool]) -> None:
    tiny = PoolSpec(model="tiny", sequence=2, cpus=0.5)
    pool = Pool(settings.model_copy(update={"pools": (tiny,), "save_every": 5}), {"tiny": TINY}, room_s=10.0)
    closing.append(pool)
    asked = replace(request(5, steps=100), job_id=31)
    (whole,) = pool.render([asked], never)
    assert isinstance(whole, Rendered)
    pool.scratch.drop(31)
    killer = kill_once_kept(pool, "tiny", 31, 1)
    with pytest.raises(Fault):
        pool.render([asked], never)
    killer.join()
    at = step_of(pool, 31)
    heard: list[Step] = []
    (again,) = pool.render([asked], never, heard.extend)
    assert isinstance(again, Rendered)
    assert min(step.step for step in heard) > at >= 10
    assert again.frame == whole.frame


def test_a_cancel_reaches_the_rank_within_a_look_and_a_step(settings: Settings, closing: list[Pool]) -> None:
    pool = Pool(settings, CARDS, shard=WALKS, room_s=3.0)
    closing.append(pool)
    stop, told = threading.Event(), [0.0]
    heard: list[Step] = []

    def watch(steps: object) -> None:
        heard.extend(steps)  # type: ignore[arg-type]
        if len(heard) == 3:
            told[0] = time.monotonic()
            stop.set()

    (answer,) = pool.render([long(7, steps=2000)], stop.is_set, watch)
    began = time.monotonic()
    took = began - told[0]
    assert isinstance(answer, Fault)
    assert answer.cause is Cause.LEASE_LOST
    assert took < 5, "a look is 0.2 s and a step 0.05 s, on a machine that has time"
    at = step_of(pool, 7)
    assert at >= heard[2].step
    (again,) = pool.render([long(7, steps=2000)], lambda: time.monotonic() > began + 1, watch)
    assert isinstance(again, Fault)
    assert step_of(pool, 7) > at, "what goes on goes on from there"
