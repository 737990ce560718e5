"""What holds the room that a gang lacks, told without Ray; and what nobody uses makes room only where that helps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from actors import building, gang, room
from actors.gang import Site
from actors.places import post_of
from actors.placing import UNIT, Bundle, Node, Room, lacking
from farm.config import PoolSpec, Settings
from farm.lack import Amount, Lack
from tests.actors.conftest import CARDS


def row(number: int, cpus: float = 16.0, gpus: int = 0, **labels: str) -> dict[str, Any]:
    resources = {"CPU": cpus} | ({"GPU": float(gpus)} if gpus else {})
    name = f"node-{number}"
    return {"NodeID": name, "Alive": True, "Resources": resources, "Labels": labels, "NodeManagerHostname": name}


def group(name: str, *homes: str, state: str = "CREATED", **each: float) -> dict[str, Any]:
    bundles = dict.fromkeys(range(len(homes)), each)
    return {"name": name, "state": state, "bundles": bundles, "bundles_to_node_id": dict(enumerate(homes))}


def asks(**spec: Any) -> Any:
    given = {"cpus": 1.0} | spec
    return post_of(PoolSpec(model="flat", **given), CARDS["flat"], Settings(), "tests.actors.fakes:load_flat")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, Any]]]:
    """What Ray tells of its nodes and placement groups."""
    facts: dict[str, list[dict[str, Any]]] = {"nodes": [], "groups": []}
    monkeypatch.setattr("ray.nodes", lambda: facts["nodes"])
    monkeypatch.setattr("ray.cluster_resources", lambda: {"GPU": 4.0})
    monkeypatch.setattr("ray.util.placement_group_table", lambda: dict(enumerate(facts["groups"])))
    return facts


def test_only_what_lies_on_nodes_that_would_take_it_and_are_not_drained_makes_room(
    told: dict[str, list[dict[str, Any]]],
) -> None:
    told["nodes"] = [row(0), row(1, gpus=4), row(2, gpus=4), row(3, gpus=1), row(4, gpus=4) | {"Alive": False}]
    told["groups"] = [
        group("gang/cpu", "node-0", CPU=1.0),
        group("gang/both", "node-1", "node-2", CPU=2.0, GPU=2.0),
        group("gang/other", "node-1", GPU=1.0, CPU=1.0),
        group("gang/drained", "node-2", GPU=2.0, CPU=1.0),
        group("gang/small", "node-3", GPU=1.0, CPU=1.0),
        group("gang/pending", "", state="PENDING", GPU=4.0),
    ]
    found = room.lack(asks(gpus=1.0, tensor=4), frozenset({"node-2"}))
    assert found.left == {"node-1": (13 * UNIT, UNIT)}
    assert [name for name in found.taken if found.useful(name)] == ["both", "other"]
    assert (found.met(["both"]), found.met(["other"]), found.met(["both", "other"])) == (False, False, True)
    assert found.met(["both", "other", "drained", "small", "cpu"])
    assert found.least(["small", "cpu", "drained", "other", "both"]) == ["other", "both"]
    wide = room.lack(asks(gpus=1.0, tensor=4, sequence=3), frozenset())
    assert not wide.met(wide.taken), "it fits no empty nodes"


@pytest.mark.parametrize(
    ("bundle", "taken", "goes"),
    [
        (Bundle(UNIT, UNIT), {"half": {"h": (0, UNIT // 2)}, "cpu": {"h": (UNIT, 0)}}, ["half"]),  # of a GPU each
        (Bundle(UNIT, 0), {"cpu": {"h": (UNIT, 0)}}, ["cpu"]),  # others than gangs have the rest
        (Bundle(UNIT, 0), {}, []),
    ],
)
def test_where_ray_finds_no_room_though_some_seems_to_be_a_gang_has_to_go(
    bundle: Bundle, taken: Mapping[str, Mapping[str, Amount]], goes: list[str]
) -> None:
    found = lacking(bundle, 1, {"h": Room.of(Node("h", 16.0, 2))}, taken)
    assert not found.met()
    assert found.least(list(taken)) == goes


def test_what_nobody_uses_goes_only_where_it_makes_the_room_and_no_more_than_must(
    told: dict[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    told["nodes"] = [row(0), row(1, gpus=4)]
    told["groups"] = [
        group("gang/flat.1.cpu", "node-0", CPU=1.0),
        group("gang/flat.2.one", "node-1", GPU=1.0, CPU=1.0),
        group("gang/flat.3.two", "node-1", GPU=1.0, CPU=1.0),
        group("gang/flat.4.used", "node-1", GPU=2.0, CPU=1.0),
    ]
    unused, removed, lacks = ["flat.1.cpu", "flat.3.two", "flat.2.one"], list[str](), list[Lack]()

    def remove(gang_id: str, why: str) -> bool:
        removed.append(gang_id)
        return True

    def seek(post: Any, drained: frozenset[str] = frozenset()) -> None:
        site, looks = Site("flat.9.new", None, None, "ready", drained), iter([True] * 2)
        building._has_room(site, post, lambda: next(looks, False), lambda: drained, lacks.append, 0.0)

    monkeypatch.setattr("ray.wait", lambda *_, **__: ([], ["ready"]))
    monkeypatch.setattr(building, "clear", lambda: False)
    monkeypatch.setattr(gang, "unused", lambda: unused)
    monkeypatch.setattr(gang, "remove_unused", remove)
    seek(asks(gpus=1.0))
    assert (removed, lacks) == (["flat.2.one"], [])
    seek(asks(gpus=1.0), frozenset({"node-1"}))
    assert removed == ["flat.2.one"], "those on drained nodes are of no use"
    assert [lack.met(lack.taken) for lack in lacks] == [False]
    seek(asks(gpus=1.0, tensor=3))
    assert removed == ["flat.2.one"], "not without one that is in use"
    assert [(lack.met(), lack.met(["flat.4.used"])) for lack in lacks[1:]] == [(False, True)]
    seek(asks(gpus=0.0, cpus=16.0))
    assert removed == ["flat.2.one", "flat.1.cpu"]


@pytest.mark.parametrize(
    ("drained", "words"),
    [
        ([], ""),
        ([3], ""),
        ([1], "; 1 node that would do is drained: `farm pool undrain node-1/node-1`"),
        ([1, 2, 3], "; 2 nodes that would do are drained: `farm pool undrain node-1/node-1`"),
    ],
)
def test_a_node_that_would_do_but_is_drained_is_named(
    told: dict[str, list[dict[str, Any]]], drained: list[int], words: str
) -> None:
    told["nodes"] = [row(1, gpus=4), row(2, gpus=4), row(3, gpus=1)]
    said = room.why_none(asks(gpus=2.0), [], {f"node-{number}" for number in drained})
    assert said == f"no node has room for {room.words(asks(gpus=2.0))}; gangs in use: none{words}"
