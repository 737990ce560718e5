"""Gangs of several ranks on a real Ray: the picture of one rank, one vote to stop, one end for all."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import psutil
import pytest
import ray

from actors import gang
from actors.cards import TINY
from actors.pool import Pool
from farm.config import PoolSpec, Settings
from farm.errors import Fault
from farm.job import Cause, Spec
from farm.ports import Demand, Drained, Frame, GangState, Rendered, RenderRequest
from tests.actors.conftest import until
from tests.flux import containers_kit as kit
from tests.flux import samples

CARDS = {"tiny": TINY}
RED = Frame(96, 96, bytes((220, 40, 40)) * 96 * 96)


def never() -> bool:
    return False


def request(
    seed: int, prompt: str = "a red circle on a blue background", steps: int = 4, edit: bool = False
) -> RenderRequest:
    spec = Spec("tiny", prompt, seed, 128, 96, steps, 3.5, edit=edit)
    return RenderRequest(seed, 1, spec, RED if edit else None)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights; four heads, in T5 too, that 2 and 4 ranks can share."""
    folder = samples.comfyui(tmp_path_factory.mktemp("small"))
    flux, t5 = replace(kit.FLUX, hidden_size=64, num_heads=4), replace(kit.T5, num_heads=4)
    kit.write(folder / "diffusion_models" / "flux1-dev.safetensors", kit.random_tensors(flux, seed=1, scale=0.2))
    kit.write(folder / "text_encoders" / "t5xxl_fp16.safetensors", kit.random_tensors(t5, seed=3))
    (folder / "config.json").write_text(json.dumps(kit.CONFIG | {"flux": vars(flux), "t5": vars(t5)}))
    return str(folder)


def pool_of(settings: Settings, **shape: float) -> Pool:
    """Several ranks find room on however few CPUs there are."""
    spec = PoolSpec(model="tiny", cpus=0.25, **shape)
    return Pool(settings.model_copy(update={"pools": (spec,)}), CARDS, room_s=10.0)


@pytest.fixture
def closing() -> Iterator[list[Pool]]:
    pools: list[Pool] = []
    yield pools
    for pool in pools:
        for place in pool._all():
            pool._remove(place)
    until(lambda: not gang.standing())


def pictures(pool: Pool, *requests: RenderRequest) -> list[np.ndarray]:
    found = []
    for answer in pool.render(requests, never):
        assert isinstance(answer, Rendered), answer
        found.append(np.frombuffer(answer.frame.pixels, np.uint8).astype(int))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("shape", [{"sequence": 2}, {"tensor": 3}])
def test_several_ranks_draw_what_one_draws(settings: Settings, closing: list[Pool], shape: dict[str, float]) -> None:
    asked = [request(5), request(6), request(7, "make the background green", edit=True)]
    alone, together = pool_of(settings), pool_of(settings, **shape)
    closing += [alone, together]
    for one, other in zip(pictures(alone, *asked[:2]), pictures(together, *asked[:2]), strict=True):
        assert np.abs(one - other).max() <= 1
    assert np.abs(pictures(alone, asked[2])[0] - pictures(together, asked[2])[0]).max() <= 1


FAST = [(2, 2)]
ALL = [(tensor, sequence) for tensor in (1, 2, 4) for sequence in (1, 2, 4) if tensor * sequence > 1]


@pytest.mark.parametrize(
    ("tensor", "sequence"),
    [*FAST, *(pytest.param(*shape, marks=pytest.mark.slow) for shape in ALL if shape not in FAST)],
)
def test_every_shape_draws_what_one_rank_draws(
    settings: Settings, closing: list[Pool], small: str, tensor: int, sequence: int
) -> None:
    """Text, an edit, not square, with guidance; on a model of four heads with random weights."""
    asked = [request(5, "w3 w4 w5"), request(6, "w7"), request(7, "w9 w3", edit=True)]
    drawn = []
    for shape in ((1, 1), (tensor, sequence)):
        spec = PoolSpec(model="tiny", cpus=0.1, tensor=shape[0], sequence=shape[1], weights=small)
        pool = Pool(
            settings.model_copy(update={"pools": (spec,)}), CARDS, shard="tests.actors.fakes:load_small", room_s=10.0
        )
        closing.append(pool)
        drawn.append([*pictures(pool, *asked[:2]), *pictures(pool, asked[2])])
    for one, other in zip(*drawn, strict=True):
        assert np.ptp(one) > 50  # there is something to see
        assert np.abs(one - other).max() <= 1


def test_a_rank_that_is_killed_ends_its_gang_and_another_is_built(settings: Settings, closing: list[Pool]) -> None:
    pool = pool_of(settings, sequence=2)
    closing.append(pool)
    (first,) = pool.render([request(5)], never)
    assert isinstance(first, Rendered)
    one = pool.places["tiny"][0].gang
    assert one is not None
    pids = [hello.pid for hello in ray.get([gang._ask(rank, "hello").remote() for rank in one.ranks])]
    killer = threading.Timer(0.5, os.kill, [pids[1], signal.SIGKILL])
    killer.start()
    with pytest.raises(Fault) as caught:
        pool.render([request(5, steps=50)] * 4, never)
    killer.join()
    assert caught.value.cause is Cause.GANG_DIED
    until(lambda: not any(psutil.pid_exists(pid) for pid in pids))
    (again,) = pool.render([request(5)], never)
    assert isinstance(again, Rendered)
    assert again.gang != first.gang
    assert again.frame == first.frame


def test_all_ranks_stop_before_the_same_step(settings: Settings, closing: list[Pool]) -> None:
    pool = pool_of(settings, sequence=2)
    closing.append(pool)
    (first,) = pool.render([request(5)], never)
    assert isinstance(first, Rendered)
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    answers = pool.render([request(5, steps=50)] * 4, stop.is_set)
    assert [answer.cause for answer in answers if isinstance(answer, Fault)] == [Cause.LEASE_LOST] * 4
    (after,) = pool.render([request(5)], never)
    assert isinstance(after, Rendered)
    assert (after.gang, after.frame) == (first.gang, first.frame)


def test_a_shape_that_the_model_cannot_have_says_which_it_can(settings: Settings, closing: list[Pool]) -> None:
    pool = pool_of(settings, tensor=2)
    closing.append(pool)
    with pytest.raises(Fault, match=r"tensor 2 does not divide 3 heads: possible are 1, 3") as caught:
        pool.render([request(5)], never)
    assert caught.value.cause is Cause.WEIGHTS_MISSING
    until(lambda: not gang.standing())


def test_a_second_gang_is_built_while_the_first_is_busy_and_one_goes_when_idle(
    settings: Settings, closing: list[Pool]
) -> None:
    pool = pool_of(settings, max=2, min=1, idle_s=0.5)
    closing.append(pool)
    pool.tend()
    until(lambda: [row.state for row in pool.status()] == [GangState.READY, GangState.GONE], 120.0)
    pool.need({"tiny": Demand(100, 1e5)}, {}, Drained())
    pool.tend()
    until(lambda: [row.state for row in pool.status()] == [GangState.READY] * 2, 120.0)
    assert all(row.load_s > 0 and row.nodes for row in pool.status())
    pool.need({}, {}, Drained())
    found: list[str] = []

    def draw() -> None:
        (answer,) = pool.render([request(5, steps=50)], never)
        assert isinstance(answer, Rendered)
        found.append(answer.gang)

    threads = [threading.Thread(target=draw) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(set(found)) == 2
    time.sleep(0.6)
    pool.tend()
    assert [row.state for row in pool.status()] == [GangState.READY, GangState.GONE]


def test_where_there_is_no_room_for_a_further_gang_the_first_draws_on(settings: Settings, closing: list[Pool]) -> None:
    room = ray.cluster_resources()["CPU"]
    spec = PoolSpec(model="tiny", cpus=room, max=2)
    pool = Pool(settings.model_copy(update={"pools": (spec,)}), CARDS, room_s=1.0)
    closing.append(pool)
    pool.need({"tiny": Demand(100, 1e5)}, {}, Drained())
    threads = [threading.Thread(target=pictures, args=(pool, request(seed, steps=8))) for seed in (5, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(gang.standing()) == 1
    until(lambda: any(row.lack for row in pool.status()))
    (other,) = (row for row in pool.status() if not row.gang)
    assert other.state is GangState.STARTING
    assert other.waits_for.startswith("room in the cluster")
    assert other.lack is not None
    assert other.lack.least(list(other.lack.taken)) == gang.standing()
    pool.need({}, {}, Drained())
    until(lambda: pool.status()[other.place].state is GangState.GONE)
    assert len(gang.standing()) == 1
