"""Ray's own autoscaler, with a provider whose nodes are raylets on this machine: gangs that find no room make it add
nodes, and nodes that no gang is on any more go."""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from actors import cluster, gang, head
from actors.pool import Pool
from farm.config import PoolSpec, Settings
from farm.errors import Fault
from farm.job import Spec
from farm.ports import Demand, Drained, GangState, GangStatus, Rendered, RenderRequest
from tests.actors.conftest import CARDS, joined, until

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]
# As Ray's own tests name the head, which its provider does not make itself.
HEAD = "f" * 51 + "00000"
ITS_OWN = {
    "RAY_FAKE_CLUSTER": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": HEAD,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
    "RAY_USAGE_STATS_ENABLED": "0",
}


def config(port: int) -> dict[str, Any]:
    lists = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "growing",
        "max_workers": 2,
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": 0.05,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": f"127.0.0.1:{port}",
            "head_node_id": HEAD,
            "launch_multiple": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "auth": {},
        "file_mounts": {},
        "docker": {},
        **{f"{name}_commands": [] for name in lists},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0},
            "one": {
                "resources": {"CPU": 1, "object_store_memory": 96 << 20},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 2,
            },
        },
    }


@pytest.fixture
def growing(settings: Settings) -> Iterator[Settings]:
    """A head without a CPU, and room for two nodes of one that are not there."""
    cluster.disconnect()
    with tempfile.TemporaryDirectory(prefix="as-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        (Path(folder) / "config.json").write_text(json.dumps(config(port)))
        argv = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=0"]
        argv += [f"--port={port}", "--node-ip-address=127.0.0.1", "--include-dashboard=false"]
        argv += [f"--temp-dir={folder}/r", f"--autoscaling-config={folder}/config.json"]
        argv += [f"--object-store-memory={96 << 20}"]
        with (Path(folder) / "head.log").open("wb") as log:
            process = psutil.Popen(argv, env=os.environ | head.HEAD_ONLY | ITS_OWN, stdout=log, stderr=log)
        theirs = settings.model_copy(update={"ray_address": f"127.0.0.1:{port}"})
        try:
            joined(theirs)
            yield theirs
        finally:
            cluster.disconnect()
            family = [process, *process.children(recursive=True)]
            for one in family:
                one.kill()
            psutil.wait_procs(family, timeout=20)
            cluster.connect(settings)


def rows(pool: Pool) -> list[GangStatus]:
    return [row for row in pool.status() if row.model == "flat"]


def nodes() -> int:
    return sum(bool(node["Alive"]) and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())


def request(prompt: str, seed: int) -> RenderRequest:
    return RenderRequest(seed, 1, Spec("flat", prompt, seed, 32, 16, 2, 1.0))


@pytest.mark.timeout(600)
def test_gangs_bring_nodes_and_take_none_along_that_still_draws(growing: Settings) -> None:
    spec = PoolSpec(model="flat", cpus=1, max=2, idle_s=12.0)
    pool = Pool(growing.model_copy(update={"pools": (spec,)}), CARDS, shard="tests.actors.fakes:load_flat", room_s=2.0)
    pool.start()
    stop = threading.Event()
    answers: list[Rendered | Fault] = []

    def draw() -> None:
        answers.extend(pool.render([request("slow", 1)], stop.is_set))

    drawing = threading.Thread(target=draw)
    try:
        assert nodes() == 0
        pool.need({"flat": Demand(100, 1e5)}, {}, Drained())
        until(lambda: [row.state for row in rows(pool)] == [GangState.READY] * 2, 240.0)
        assert nodes() == 2  # of one CPU, as many as a gang takes
        drawing.start()  # for half a minute
        until(lambda: GangState.BUSY in [row.state for row in rows(pool)], 30.0)
        (busy,) = (row.gang for row in rows(pool) if row.state is GangState.BUSY)
        pool.need({}, {}, Drained())
        until(lambda: nodes() == 1, 120.0)
        assert [row.gang for row in rows(pool) if row.gang] == [busy]
        drawing.join(120)
        (answer,) = answers
        assert isinstance(answer, Rendered), answer
        assert answer.gang == busy
        until(lambda: nodes() == 0, 120.0)
        assert gang.standing() == []
    finally:
        stop.set()
        pool.close(remove=True)
