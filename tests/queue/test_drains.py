"""What an operator drains: known to every dispatcher, on the record, refused where nothing is called so."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import select

from farm.access import KeyView
from farm.db import reading
from farm.drains import KEPT_S, drain, drained, undrain
from farm.errors import BadInput, NotFound
from farm.ports import Drained, GangState, GangStatus, NodeStatus
from farm.tables import AUDIT
from tests.queue.conftest import Desk

ANN = KeyView("key_1", "ours", "ann", "operator", 0.0)
GANG = GangStatus("main", 0, "tiny", "main.1.ab", GangState.BUSY, "4 pictures", 0.0, nodes=("one/aaaaaaaa",))
NODES = [NodeStatus(letter * 56, f"{host}/{letter * 8}", 2.0, 0) for host, letter in (("one", "a"), ("two", "b"))]


@pytest.fixture
def told(desk: Desk) -> Desk:
    desk.queue.tell_gangs("dispatcher", [GANG], NODES)
    return desk


def deeds(desk: Desk) -> list[tuple[str, str, str]]:
    with reading(desk.engine) as connection:
        return [(row.actor, row.action, row.subject) for row in connection.execute(select(AUDIT).order_by(AUDIT.c.id))]


def test_a_node_is_drained_by_its_name_its_id_or_its_host_and_undrained(told: Desk) -> None:
    for name in ("one/aaaaaaaa", "a" * 56, "one"):
        assert drain(told.engine, name, ANN, clock=told.clock) == "node"
        assert drained(told.engine) == Drained(nodes=frozenset({"a" * 56}))
    assert undrain(told.engine, "one", ANN, told.clock) == "node"
    assert drained(told.engine) == Drained()
    about = "node one/aaaaaaaa"
    assert deeds(told)[-2:] == [("ann", "drain", about), ("ann", "undrain", about)]  # thrice said is said once


def test_unknown_names_are_refused_naming_the_nearest(told: Desk) -> None:
    with pytest.raises(NotFound, match=r"no node or gang is called 'main\.1\.a'") as caught:
        drain(told.engine, "main.1.a", ANN)
    assert caught.value.fix == "did you mean 'main.1.ab'?"
    with pytest.raises(NotFound, match="nothing that is drained"):
        undrain(told.engine, "one", ANN)
    told.queue.tell_gangs("dispatcher", [], [*NODES, replace(NODES[0], id="c" * 56, name="one/cccccccc")])
    with pytest.raises(BadInput, match="several are called 'one': one/aaaaaaaa, one/cccccccc"):
        drain(told.engine, "one", ANN)  # two nodes of one host


def test_a_node_that_dispatchers_call_differently_is_one(told: Desk) -> None:
    told.queue.tell_gangs("another", [], [replace(NODES[0], name="one.example/aaaaaaaa")])
    for name in ("a" * 56, "one", "one.example", "one.example/aaaaaaaa"):
        assert drain(told.engine, name, ANN, clock=told.clock) == "node"
        assert drained(told.engine) == Drained(nodes=frozenset({"a" * 56}))
        assert undrain(told.engine, "a" * 56, ANN, told.clock) == "node"


def test_a_drained_gang_is_forgotten_when_it_is_long_gone_and_a_node_is_not(told: Desk) -> None:
    drain(told.engine, "main.1.ab", ANN, clock=told.clock)
    drain(told.engine, "two", ANN, clock=told.clock)
    assert drained(told.engine) == Drained(frozenset({"b" * 56}), frozenset({"main.1.ab"}))
    told.clock.now += KEPT_S + 1
    told.queue.tell_gangs("dispatcher", [replace(GANG, gang="", nodes=())], NODES[:1])
    drain(told.engine, "one", ANN, clock=told.clock)
    assert drained(told.engine) == Drained(frozenset({"a" * 56, "b" * 56}))
    assert {node["name"]: node["drained"] for node in told.insights.nodes()} == {
        "one/aaaaaaaa": "ann",
        "two/bbbbbbbb": "ann",  # no dispatcher sees it any more
    }
    assert undrain(told.engine, "two/bbbbbbbb", ANN) == "node"
