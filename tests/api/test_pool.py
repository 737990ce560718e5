"""The pool, over HTTP and from the terminal: who sees it, what is printed, and the exit code."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from actors import nodes
from farm import drains
from farm.ports import Drained, GangState, GangStatus, NodeStatus
from farm.waiting import STALE_S
from tests.api.conftest import Shell, World


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four CPUs, 64 GB and two GPUs of 24 GB, without Ray and without settings."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("FARM_", "RAY_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(nodes, "gpu_memories", lambda: [24 * 10**9] * 2)
    monkeypatch.setattr(nodes, "host_memory", lambda: 64 * 10**9)


def pools(monkeypatch: pytest.MonkeyPatch, *some: dict[str, Any]) -> None:
    monkeypatch.setenv("FARM_POOLS", json.dumps(some))


def test_a_plan_says_what_was_seen_what_fits_and_why_not(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"model": "tiny", "name": "small", "tensor": 3, "min": 1, "device": "cpu"}
    pools(
        monkeypatch,
        small,
        {"model": "tiny", "name": "odd", "tensor": 2},
        {"model": "tiny", "name": "many", "sequence": 4},
    )
    assert shell("pool", "plan", "--json") == 1
    told = shell.json()
    assert told["seen"].startswith("this machine; Ray is not running")
    (node,) = told["nodes"]
    assert (node["cpus"], node["gpus"], node["gpu_bytes"], node["host_bytes"]) == (4, 2, 24 * 10**9, 64 * 10**9)
    rows = {row["pool"]: row for row in told["pools"]}
    assert list(rows) == ["small", "odd", "many", "flux1-schnell", "flux1-dev", "flux1-kontext-dev"]
    assert (rows["small"]["fits"], rows["small"]["where"]) == ("yes", [[node["name"]] * 3])
    assert rows["small"]["weight_bytes"] == sum(rows["small"]["rank_bytes"].values()) > 10**6
    assert rows["odd"]["why"][0] == "tensor 2 does not divide 3 heads: possible are 1, 3"
    assert rows["many"]["why"] == ["a gang of 4 ranks needs 4 GPUs, and the nodes have 2 in all"]
    assert "flux1-dev lacks transformer" in rows["flux1-dev"]["why"][0]
    assert shell("pool", "plan") == 1
    lines = shell.out.splitlines()
    assert lines[0].startswith("nodes: this machine;")
    (small_line,) = (line.split() for line in lines if line.startswith("small "))
    assert small_line[:8] == ["small", "all", "tiny", "3x1", "1", "to", "1", "float32"]
    assert " ".join(small_line[-5:]) == f"0 yes 3 on {node['name']}"
    assert "many: a gang of 4 ranks needs 4 GPUs, and the nodes have 2 in all" in lines


def test_a_stage_apart_is_a_row_of_the_plan_and_its_weights_are_there_alone(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools(monkeypatch, {"model": "tiny", "device": "cpu", "encoders": {"cpus": 0.5}})
    assert shell("pool", "plan", "--json") == 0
    words, rest = (row for row in shell.json()["pools"] if row["pool"].startswith("tiny"))
    assert (words["pool"], words["stages"], words["cpus"]) == ("tiny/encode", ["encode"], 0.5)
    assert (rest["stages"], rest["rank_bytes"].keys()) == (["denoise", "decode"], {"transformer", "vae"})
    assert shell("pool", "plan") == 0
    assert "denoise, decode" in shell.out
    pools(monkeypatch, {"model": "tiny", "device": "cpu", "encoders": {"cpus": 50}})
    assert shell("pool", "plan") == 1
    assert "tiny/encode: a gang of 1 rank needs 50 CPUs" in shell.out


def test_a_model_that_nobody_declared_may_lack_its_files(shell: Shell) -> None:
    assert shell("pool", "plan") == 0
    assert "flux1-dev: flux1-dev lacks transformer" in shell.out


def test_an_unknown_model_of_a_pool_names_the_nearest(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    pools(monkeypatch, {"model": "tinny"})
    assert shell("pool", "plan") == 2
    assert "did you mean 'tiny'" in shell.err


def tell(world: World, **places: str) -> None:
    """One dispatcher's word: the state of each place, and what it waits for there."""
    began = time.time() - 300.0
    gangs = [
        GangStatus("main", number, "tiny", f"main.{number}", GangState(state), words, began, nodes=("host/aaaaaaaa",))
        for number, (state, words) in enumerate(places.items())
    ]
    nodes = [NodeStatus("a" * 56, "host/aaaaaaaa", 2.0, 0), NodeStatus("b" * 56, "other/bbbbbbbb", 2.0, 1)]
    world.farm.queue.tell_gangs("host:1:ab", gangs, nodes)


def test_operators_alone_see_the_pool(world: World) -> None:
    tell(world, busy="2 pictures")
    for role in ("submitter", "reviewer"):
        refused = world.get("/api/pool", f"ours/{role}")
        assert refused.status_code == 403
        assert refused.json()["detail"] == f"a {role} may not see the pool"
    assert world.client.get("/api/pool").status_code == 401
    for who in ("ours/operator", "theirs/operator"):
        (row,) = world.get("/api/pool", who).json()["items"]
        assert (row["gang"], row["state"], row["waits_for"]) == ("main.0", "busy", "2 pictures")
        assert row["dispatcher"] == "host:1:ab"
        assert 300.0 <= row["for_s"] < 400.0


def test_metrics_count_the_places_of_each_pool_by_state(world: World) -> None:
    assert "farm_gangs{" not in world.client.get("/metrics").text
    tell(world, busy="2 pictures", ready="a job")
    lines = [line for line in world.client.get("/metrics").text.splitlines() if line.startswith("farm_gangs{")]
    states = {str(state): int(state in ("busy", "ready")) for state in GangState} | {"silent": 0}
    assert lines == [f'farm_gangs{{pool="main",state="{state}"}} {count:.1f}' for state, count in states.items()]


def test_ls_shows_each_place_and_which_dispatcher_is_silent(
    shell: Shell, world: World, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM_URL", address)
    monkeypatch.setenv("FARM_KEY", world.keys["ours/operator"])
    assert shell("pool", "ls") == 0
    assert "no dispatcher tells of any gang" in shell.err
    tell(world, busy="2 pictures", gone="a job")
    assert shell("pool", "ls", "--json") == 0
    assert [row["state"] for row in shell.json()["gangs"]] == ["busy", "gone"]
    assert shell("pool", "ls") == 0
    header, first, _, empty, *nodes = shell.out.splitlines()
    assert header.split() == [
        "pool",
        "place",
        "model",
        "gang",
        "on",
        "state",
        "waits",
        "for",
        "for",
        "dispatcher",
        "said",
    ]
    assert " ".join(first.split()).startswith("main 0 tiny main.0 host/aaaaaaaa busy 2 pictures 5 min host:1:ab")
    assert empty == ""
    assert [line.split() for line in nodes] == [
        ["node", "CPUs", "GPUs", "drained", "by"],
        ["host/aaaaaaaa", "2", "0"],
        ["other/bbbbbbbb", "2", "1"],
    ]
    later = time.time() + STALE_S
    monkeypatch.setattr(world.farm.insights, "clock", lambda: later)
    shell("pool", "ls")
    assert "silent" in shell.out
    assert "its dispatcher, which last said: busy (2 pictures)" in shell.out


def test_an_operator_drains_a_node_and_everyone_sees_by_whom(
    shell: Shell, world: World, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM_URL", address)
    monkeypatch.setenv("FARM_KEY", world.keys["ours/operator"])
    tell(world, busy="2 pictures")
    assert shell("pool", "drain", "othr") == 1
    assert "no node or gang is called 'othr'" in shell.err
    assert shell("pool", "drain", "other", "--reason", "a new fan") == 0
    assert "node other is drained" in shell.err
    assert shell("pool", "ls", "--json") == 0
    assert [(node["name"], bool(node["drained"])) for node in shell.json()["nodes"]] == [
        ("host/aaaaaaaa", False),
        ("other/bbbbbbbb", True),
    ]
    shell("pool", "ls")
    (line,) = (line.split() for line in shell.out.splitlines() if line.startswith("other/bbbbbbbb"))
    assert line[:3] == ["other/bbbbbbbb", "2", "1"]
    assert len(line) > 3  # by whom
    assert drains.drained(world.farm.queue.engine) == Drained(frozenset({"b" * 56}))
    assert shell("pool", "undrain", "other/bbbbbbbb") == 0
    assert shell("pool", "undrain", "other/bbbbbbbb") == 1
    assert drains.drained(world.farm.queue.engine) == Drained()


def test_whoever_is_no_operator_drains_nothing(world: World) -> None:
    tell(world, busy="2 pictures")
    for deed in ("drain", "undrain"):
        for role in ("submitter", "reviewer"):
            assert world.post(f"/api/pool/{deed}?name=main.0", f"ours/{role}").status_code == 403
    assert drains.drained(world.farm.queue.engine) == Drained()
