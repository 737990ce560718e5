"""`farm pool` from the terminal: what is printed, and the exit code."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from actors import nodes
from tests.api.conftest import Shell


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
    assert small_line[:8] == ["small", "tiny", "3x1", "1", "to", "1", "float32", small_line[7]]
    assert " ".join(small_line[-5:]) == f"0 yes 3 on {node['name']}"
    assert "many: a gang of 4 ranks needs 4 GPUs, and the nodes have 2 in all" in lines


def test_a_model_that_nobody_declared_may_lack_its_files(shell: Shell) -> None:
    assert shell("pool", "plan") == 0
    assert "flux1-dev: flux1-dev lacks transformer" in shell.out


def test_an_unknown_model_of_a_pool_names_the_nearest(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    pools(monkeypatch, {"model": "tinny"})
    assert shell("pool", "plan") == 2
    assert "did you mean 'tiny'" in shell.err
