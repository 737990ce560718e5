"""Stages in gangs of their own, on a real Ray: each is lost and rebuilt for itself, and waits for nobody."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from actors import loading
from actors.cards import TINY
from actors.loading import Load
from actors.pool import Pool
from actors.rank import job_of
from actors.work import frame_of
from farm.config import GangSpec, PoolSpec, Settings
from farm.errors import Fault
from farm.job import Cause
from farm.ports import GangState, Rendered, RenderRequest
from tests.actors.conftest import CARDS, request_of, until

FLAT, WORDS, PICTURES = "flat", "flat/encode", "flat/decode"


def never() -> bool:
    return False


def pool_of(settings: Settings, shard: str, **stages: GangSpec) -> Pool:
    spec = PoolSpec(model="flat", cpus=0.1, **stages)
    return Pool(settings.model_copy(update={"pools": (spec,)}), CARDS, shard=shard, room_s=10.0)


@pytest.fixture
def closing() -> Iterator[list[Pool]]:
    pools: list[Pool] = []
    yield pools
    for pool in pools:
        pool.close(remove=True)


def drawn(pool: Pool, prompt: str = "a", seed: int = 5) -> Rendered:
    (answer,) = pool.render([request_of(prompt, seed)], never)
    assert isinstance(answer, Rendered), answer
    assert answer.frame.pixels == bytes((seed,)) * 32 * 16 * 3
    return answer


def gangs(pool: Pool) -> dict[str, str]:
    return {row.pool: row.gang for row in pool.status() if row.gang}


def test_stages_apart_fail_and_are_rebuilt_each_for_itself(settings: Settings, closing: list[Pool]) -> None:
    few = GangSpec(cpus=0.1)
    pool = pool_of(settings, "tests.actors.fakes:load_staged", encoders=few, decoders=few)
    closing.append(pool)
    one = drawn(pool)
    first = gangs(pool)
    assert first.keys() == {FLAT, WORDS, PICTURES}
    assert one.gang == first[FLAT], "the gang that drew goes on record"

    with pytest.raises(Fault) as caught:
        pool.render([request_of("die in encode")], never)
    assert (caught.value.cause, caught.value.gang) == (Cause.GANG_DIED, first[WORDS])
    (odd, fine) = pool.render([request_of("odd in denoise", 1), request_of("a", 2)], never)
    assert isinstance(odd, Fault)
    assert isinstance(fine, Rendered)
    again = gangs(pool)
    assert again.keys() == first.keys()
    assert [again[name] == first[name] for name in (FLAT, WORDS, PICTURES)] == [True, False, True]

    place = pool.places[PICTURES][0]
    assert place.gang
    os.kill(place.gang.hello().pid, signal.SIGKILL)
    with pytest.raises(Fault) as caught:
        pool.render([request_of("a")], never)
    assert caught.value.gang == first[PICTURES]
    drawn(pool)
    assert gangs(pool)[FLAT] == first[FLAT]

    waits_for_its_gang(pool)


def waits_for_its_gang(pool: Pool) -> None:
    """The next job's words are ready while the gang still draws the last one."""
    busy, words = pool.places[FLAT][0], pool.places[WORDS][0]
    since, done = words.since, list[Rendered]()
    with busy.lock:
        thread = threading.Thread(target=lambda: done.append(drawn(pool)))
        thread.start()
        until(lambda: words.state is GangState.READY and words.since > since)
        assert thread.is_alive()
        assert not done
    thread.join(30)
    assert len(done) == 1


@pytest.mark.slow
def test_the_tiny_model_in_parts_draws_what_it_draws_whole(settings: Settings, closing: list[Pool]) -> None:
    import torch

    few = GangSpec(cpus=0.1)
    spec = PoolSpec(model="tiny", cpus=0.1, encoders=few, decoders=few)
    pool = Pool(settings.model_copy(update={"pools": (spec,)}), {"tiny": TINY}, room_s=10.0)
    closing.append(pool)
    asked = [replaced(request_of("a red circle on a blue background", seed)) for seed in (5, 6)]
    answers = pool.render(asked, never)
    whole = loading.load_known(TINY, None, Load("cpu", torch.float32))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as ranks of one CPU do
    try:
        pictures = whole.renderer.render([job_of(request) for request in asked])
    finally:
        torch.set_num_threads(threads)
    assert [one.frame for one in answers if isinstance(one, Rendered)] == [frame_of(one) for one in pictures]
    assert {one.weights for one in answers if isinstance(one, Rendered)} == {whole.weights}


def replaced(request: RenderRequest) -> RenderRequest:
    return replace(request, spec=replace(request.spec, model="tiny", width=96, height=64, guidance=3.5))
