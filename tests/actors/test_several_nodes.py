"""A gang over several nodes, and what becomes of it when one of them is lost: raylets on this one machine."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from actors import cluster, gang, room
from actors.pool import Pool
from farm.config import PoolSpec, Settings
from farm.errors import Fault
from farm.job import Cause
from farm.ports import Demand, Drained, GangState, GangStatus, Rendered
from tests.actors.conftest import joined, until
from tests.actors.test_ranks_together import CARDS, never, request

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # of Ray's own test cluster


@pytest.fixture
def nodes(settings: Settings) -> Iterator[Cluster]:
    """A head that holds nobody, and three nodes of one CPU."""
    cluster.disconnect()
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(3):
            made.add_node(num_cpus=1)
        yield made
    finally:
        cluster.disconnect()
        made.shutdown()
        gc.collect()
        cluster.connect(settings)


@pytest.mark.slow
def test_a_gang_on_two_nodes_draws_and_is_built_again_when_one_is_lost(settings: Settings, nodes: Cluster) -> None:
    spec = PoolSpec(model="tiny", sequence=2, cpus=1)
    theirs = settings.model_copy(update={"pools": (spec,), "ray_address": nodes.address})
    pool = Pool(theirs, CARDS, room_s=10.0)
    first = drawn(pool)
    homes = homes_of(first.gang)
    assert len(set(homes)) == 2
    lost = next(node for node in nodes.worker_nodes if node.node_id == homes[1])
    nodes.remove_node(lost, allow_graceful=False)
    with pytest.raises(Fault) as caught:
        drawn(pool)
    assert caught.value.cause is Cause.NODE_FAILED
    again = drawn(pool)
    assert again.gang != first.gang
    assert again.frame == first.frame
    assert lost.node_id not in homes_of(again.gang)
    pool.close(remove=True)


@pytest.mark.slow
def test_a_gang_that_died_is_built_again_on_another_node_though_its_own_lives(
    settings: Settings, nodes: Cluster
) -> None:
    theirs = settings.model_copy(update={"pools": (PoolSpec(model="tiny", cpus=1),), "ray_address": nodes.address})
    pool = Pool(theirs, CARDS, room_s=5.0)
    homes = set[str]()
    for _ in range(3):
        homes |= set(homes_of(drawn(pool).gang))
        pool.seen = room.nodes()
        (place,) = pool.places["tiny"]
        assert place.gang is not None
        os.kill(place.gang.hello().pid, signal.SIGKILL)
        with pytest.raises(Fault) as caught:
            drawn(pool)
        assert caught.value.cause is Cause.GANG_DIED
    assert len(homes) == 3
    pool.close(remove=True)


@pytest.mark.slow
def test_the_node_that_the_dispatcher_joined_by_is_lost_and_another_one_is_joined(
    settings: Settings, nodes: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one machine Ray would always join by the head's; here, as on another machine, by what lives and is not it."""

    def elsewhere(gcs: Any, *args: object, **options: object) -> Any:
        rows = gcs.get_all_node_info(timeout=10).values()
        alive = [row for row in rows if not row.is_head_node and row.state == row.ALIVE]
        if not alive:
            raise RuntimeError("no node here")
        return alive[0]

    monkeypatch.setattr("ray._private.services.get_node_to_connect_for_driver", elsewhere)
    theirs = settings.model_copy(update={"ray_address": nodes.address})
    first = cluster.connect(theirs)
    lost = next(node for node in nodes.worker_nodes if node.node_id == first.partition("/")[0])
    lost.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
    until(lambda: joined(theirs) != first, 60.0)
    assert ray.get(ray.put(5)) == 5


@pytest.mark.slow
def test_a_gang_leaves_a_drained_node_and_waits_for_a_node_to_come(settings: Settings, nodes: Cluster) -> None:
    spec = PoolSpec(model="tiny", sequence=3, cpus=1)
    theirs = settings.model_copy(update={"pools": (spec,), "ray_address": nodes.address})
    pool = Pool(theirs, CARDS, room_s=2.0)
    pool.start()
    try:
        first = drawn(pool)
        homes = set(homes_of(first.gang))
        needs = {"tiny": Demand(1, 1.0)}
        pool.need(needs, {}, Drained(nodes=frozenset({min(homes)})))
        until(lambda: status(pool).lack is not None, 60.0)
        assert status(pool).state is GangState.STARTING
        assert gang.standing() == []
        waiting = [row for row in ray.util.placement_group_table().values() if row["state"] == "PENDING"]
        assert len(waiting) == 1  # which is what Ray's autoscaler adds nodes for
        added = nodes.add_node(num_cpus=1)
        until(lambda: status(pool).state is GangState.READY, 120.0)
        assert set(homes_of(status(pool).gang)) == homes - {min(homes)} | {added.node_id}
        assert len(status(pool).nodes) == 3
        pool.need({}, {}, Drained(gangs=frozenset({status(pool).gang})))
        until(lambda: not gang.standing())
        assert status(pool).state is GangState.GONE
    finally:
        pool.close(remove=True)


def status(pool: Pool) -> GangStatus:
    return pool.status()[0]


def drawn(pool: Pool) -> Rendered:
    (answer,) = pool.render([request(5)], never)
    assert isinstance(answer, Rendered), answer
    return answer


def homes_of(gang_id: str) -> list[str]:
    """The node of each bundle."""
    rows = ray.util.placement_group_table().values()
    row = next(row for row in rows if row["name"] == gang.PREFIX + gang_id)
    return [node for _, node in sorted(row["bundles_to_node_id"].items())]
