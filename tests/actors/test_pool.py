"""The pool on a real Ray: what is lost is rebuilt, nothing leaks, a second dispatcher finds the warm gang."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import psutil
import pytest
import ray

from actors import cluster, gang
from actors.bench import Form
from actors.places import ROOM
from actors.pool import Pool
from farm.config import PoolSpec, Settings
from farm.errors import Fault
from farm.job import CAUSES, Cause, Payer
from farm.ports import Demand, Drained, Frame, GangState, GangStatus, Rendered, RenderRequest
from tests.actors.conftest import CARDS, request_of, until

FAKE = "tests.actors.fakes:load_blind"  # none of these ranks asks for a GPU


def never() -> bool:
    return False


def make(settings: Settings, limit: Callable[[Sequence[RenderRequest]], float] = lambda _: 60.0) -> Pool:
    return Pool(settings, CARDS, shard=FAKE, limit=limit, room_s=3.0)


@pytest.fixture
def pool(settings: Settings) -> Iterator[Pool]:
    pool = make(settings)
    yield pool
    for place in pool._all():
        pool._remove(place)
    until(lambda: not groups())


def groups() -> list[str]:
    table = ray.util.placement_group_table().values()
    return [row["name"] for row in table if row["name"].startswith(gang.PREFIX) and row["state"] != "REMOVED"]


def gang_of(pool: Pool, model: str = "flat") -> gang.Gang:
    found = pool.places[model][0].gang
    assert found is not None
    return found


def drawn(pool: Pool, model: str = "flat", seed: int = 5) -> str:
    (answer,) = pool.render([request_of("a", seed, model)], never)
    assert isinstance(answer, Rendered)
    assert answer.frame.pixels == bytes((seed,)) * 32 * 16 * 3
    return answer.gang


def failed(pool: Pool, prompt: str, model: str = "flat", cancelled: Callable[[], bool] = never) -> Fault:
    try:
        (answer,) = pool.render([request_of(prompt, model=model)], cancelled)
    except Fault as fault:
        return fault
    assert isinstance(answer, Fault)
    return answer


def test_a_warm_gang_draws_again_and_a_job_s_own_fault_leaves_it_standing(pool: Pool) -> None:
    first = drawn(pool)
    assert failed(pool, "odd").cause is Cause.RENDER_ERROR
    assert drawn(pool, seed=6) == first
    assert [(row.gang, row.state) for row in pool.status() if row.gang] == [(first, GangState.READY)]


@pytest.mark.parametrize(("prompt", "cause"), [("die", Cause.GANG_DIED), ("nan", Cause.NOT_FINITE)])
def test_a_lost_gang_is_rebuilt_under_another_name(pool: Pool, prompt: str, cause: Cause) -> None:
    first = drawn(pool)
    fault = failed(pool, prompt)
    assert (fault.cause, fault.gang) == (cause, first)
    until(lambda: not groups())
    assert drawn(pool) != first
    assert len(groups()) == 1


def test_a_killed_rank_is_a_dead_gang(pool: Pool) -> None:
    first = drawn(pool)
    os.kill(gang_of(pool).hello().pid, signal.SIGKILL)
    assert (fault := failed(pool, "a")).cause is Cause.GANG_DIED
    assert fault.gang == first
    assert drawn(pool) != first


def test_what_a_rank_has_started_ends_with_it_be_it_killed(pool: Pool) -> None:
    drawn(pool)
    assert isinstance(pool.render([request_of("child")], never)[0], Rendered)
    rank = psutil.Process(gang_of(pool).hello().pid)
    (child,) = rank.children()
    rank.kill()
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_an_idle_gang_that_does_not_answer_is_sick_and_well_again_or_goes(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = drawn(pool)
    place, rank = pool.places["flat"][0], psutil.Process(gang_of(pool).hello().pid)
    for name, seconds in (("health.ASK_S", 0.0), ("tending.SICK_S", 0.2)):
        monkeypatch.setattr(f"actors.{name}", seconds)

    def becomes(state: GangState) -> None:
        def seen() -> bool:
            pool.tend()
            return place.state is state

        until(seen)

    rank.suspend()
    try:
        becomes(GangState.SICK)
        assert pool._free([place]) is None
    finally:
        rank.resume()
    becomes(GangState.READY)
    assert drawn(pool) == first
    rank.suspend()
    monkeypatch.setattr("actors.tending.LOST_S", 0.4)
    becomes(GangState.GONE)
    assert place.waits_for.startswith("no answer for")
    until(lambda: not rank.is_running())


def test_a_hung_rank_ends_itself(settings: Settings) -> None:
    pool = make(settings, limit=lambda _: 2.0)
    drawn(pool)
    rank = psutil.Process(gang_of(pool).hello().pid)
    fault = failed(pool, "hang")
    assert fault.cause is Cause.GANG_HUNG
    until(lambda: not rank.is_running())
    pool._remove(pool.places["flat"][0])


def test_cancelling_reaches_a_running_group_and_one_that_waits(pool: Pool) -> None:
    first = drawn(pool)
    stop = threading.Event()
    faults: list[Fault] = []
    threads = [
        threading.Thread(target=lambda: faults.append(failed(pool, "slow", cancelled=stop.is_set))) for _ in "ab"
    ]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    stop.set()
    for thread in threads:
        thread.join(15)
    assert [fault.cause for fault in faults] == [Cause.LEASE_LOST] * 2
    assert drawn(pool) == first


def test_a_place_that_ends_three_different_jobs_is_rested_and_then_draws_again(settings: Settings) -> None:
    pool = make(settings)
    (place,) = pool.places["flat"]
    for job in (1, 2, 2, 3):
        pool._give_up([place], time.time())
        pool._judge(place, [job], [Fault(Cause.GANG_DIED, "it died", gang="g")])
    (benched,) = [row for row in pool.status() if row.state is GangState.BENCHED]
    assert "rested for 30 s after 3 jobs in a row" in benched.waits_for
    fault = failed(pool, "a")  # without a gang: none is built
    assert CAUSES[fault.cause] is Payer.ENVIRONMENT
    assert "every gang of flat rests" in fault.detail
    place.form = replace(place.form, until=0.0)  # it is over
    pool._give_up([place], time.time())
    pool._judge(place, [4], [Fault(Cause.LEASE_LOST, "cancelled")])
    assert (place.form.rests, place.form.lost) == (1, ())
    pool._judge(place, [4], [Rendered(Frame(1, 1, b"rgb"), "g", "w")])
    assert place.form == Form()


def test_missing_weights_wait_for_the_operator_and_hold_no_room(pool: Pool) -> None:
    fault = failed(pool, "a", model="missing")
    assert fault.cause is Cause.WEIGHTS_MISSING
    assert "has no files" in fault.detail
    until(lambda: not groups())
    assert any("has no files" in row.waits_for for row in pool.status() if row.model == "missing")


def test_a_model_that_does_not_load_costs_the_job_nothing(pool: Pool) -> None:
    fault = failed(pool, "a", model="broken")
    assert fault.cause is Cause.NO_ROOM
    assert "do not load" in fault.detail
    until(lambda: not groups())


def test_an_unknown_model_is_no_crash(pool: Pool) -> None:
    with pytest.raises(Fault, match="no pool for 'unheard'"):
        pool.render([request_of("a", model="unheard")], never)


def test_a_gang_makes_room_when_it_is_told_to_and_not_before(pool: Pool) -> None:
    room = int(ray.cluster_resources()["CPU"])
    models = ["flat", "other", "third"]
    if room >= len(models):
        pytest.skip(f"{room} CPUs have room for every gang of this test")
    first = drawn(pool)
    drawn(pool, "other")
    assert failed(pool, "a", model="third").cause is Cause.NO_ROOM
    waits = {"third": Demand(1, 1.0)}
    pool.need(waits, {}, Drained())

    def third() -> GangStatus:
        pool.tend()
        return next(row for row in pool.status() if row.model == "third")

    until(lambda: third().lack is not None)
    assert third().state is GangState.STARTING
    assert third().waits_for.startswith(ROOM)
    lack = third().lack
    assert lack is not None
    assert (lack.met(), lack.met([first])) == (False, True)
    assert set(gang.standing()) <= lack.taken.keys()
    pool.need(waits, {first: "third"}, Drained())
    until(lambda: third().state is GangState.READY, 120.0)
    assert pool.places["flat"][0].gang is None
    assert first not in gang.standing()
    pool.need({}, {}, Drained())


def test_a_second_dispatcher_finds_the_warm_gang_and_sweeps_what_is_left(pool: Pool, settings: Settings) -> None:
    first = drawn(pool)
    left = f"{gang.PREFIX}flat.1000.abcdef"
    ray.util.placement_group([{"CPU": 0.01}], name=left, lifetime="detached").wait(10)
    cluster.disconnect()
    again = make(settings)
    assert drawn(again) == first
    until(lambda: left not in groups())
    assert groups() == [gang.PREFIX + first]


def test_room_that_a_dispatcher_sought_which_is_gone_is_sought_no_more(
    pool: Pool, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = drawn(pool)
    wide = replace(pool.places["flat"][0].post, cpus=1000.0)
    left, ours = gang.seek(wide, 0.0, frozenset()), f"{gang.PREFIX}{first}"
    cluster.disconnect()
    again = make(settings)
    assert drawn(again) == first
    ours_too = gang.seek(wide, 0.0, frozenset())
    again.swept = True  # what was left came later than its first look
    monkeypatch.setattr("actors.tending.CLEAR_S", 0.0)

    def looked() -> bool:
        again._let_go(time.time())
        return f"{gang.PREFIX}{left.id}" not in groups()

    until(looked)
    assert sorted(groups()) == sorted([ours, gang.PREFIX + ours_too.id])
    gang.abandon(ours_too)


def test_a_gang_in_use_by_another_dispatcher_is_neither_shared_nor_removed(pool: Pool, settings: Settings) -> None:
    first = drawn(pool)
    other = make(settings)
    second = drawn(other)  # a name is taken from whoever asks, be it in the same process
    assert second != first
    assert sorted(gang.standing()) == sorted([first, second])
    third = make(settings)
    with pytest.raises(Fault, match=f"no node has room.*{first}") as caught:
        third.render([request_of("a")], never)
    assert caught.value.cause is Cause.NO_ROOM
    assert (drawn(pool), drawn(other)) == (first, second)
    third.closed.set()  # it seeks room no more, which it would have when the others go
    until(lambda: not third.places["flat"][0].lock.locked())
    other._remove(other.places["flat"][0])


def test_a_gang_that_nobody_uses_makes_room_or_is_replaced_where_its_files_are_others(
    pool: Pool, settings: Settings
) -> None:
    left = [drawn(pool), drawn(pool, "other")]
    assert gang.unused() == []
    cluster.disconnect()
    cluster.connect(settings)
    until(lambda: gang.unused() == sorted(left))
    again = Pool(settings.model_copy(update={"embeddings_mb": 255}), CARDS, shard=FAKE, room_s=3.0)
    replaced = drawn(again)
    until(lambda: set(gang.standing()) == {left[1], replaced})
    third = drawn(again, "third")
    until(lambda: set(gang.standing()) == {replaced, third})
    for name in ("flat", "third"):
        again._remove(again.places[name][0])


def test_a_pool_that_fits_no_node_presses_nobody_out(pool: Pool, settings: Settings) -> None:
    first = drawn(pool)
    pools = (PoolSpec(model="other", labels={"zone": "nowhere"}), PoolSpec(model="third", cpus=1000))
    with_them = settings.model_copy(update={"pools": pools})
    cluster.disconnect()
    again = Pool(with_them, CARDS, shard=FAKE, room_s=0.5)
    assert drawn(again) == first
    for model in ("other", "third"):
        with pytest.raises(Fault, match=r"too small for a gang of .*farm pool plan"):
            again.render([request_of("a", model=model)], never)
    assert drawn(again) == first
    again._remove(again.places["flat"][0])
