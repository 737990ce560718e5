"""Gates that ask Ray for a share of a GPU. The node says that it has one, as Ray takes at its word."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from ray.cluster_utils import Cluster

from actors import cluster
from actors.gate import RemoteGate
from farm.config import Settings
from farm.errors import Fault
from farm.job import Cause
from farm.ports import Verdict
from tests.actors.test_host import JUDGE

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]  # of Ray's own test cluster


@pytest.fixture
def theirs(settings: Settings) -> Iterator[Settings]:
    cluster.disconnect()
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 1, "include_dashboard": False})
    try:
        asked = {"ray_address": made.address, "gate_device": "cuda", "gate_gpus": 0.5, "gates": 2}
        yield settings.model_copy(update=asked)
    finally:
        cluster.disconnect()
        made.shutdown()
        gc.collect()
        cluster.connect(settings)


def test_two_gates_share_a_gpu_and_a_third_says_what_it_lacks(
    theirs: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = RemoteGate(theirs, JUDGE, ["gun"])
    for seat in gate.seats:
        (verdict,) = seat.ask("judge_prompts", (["a cat"],), 60.0, None)
        assert isinstance(verdict, Verdict)
        assert verdict.encoder.startswith("cuda, sees '0'")
    monkeypatch.setattr("actors.host.ROOM_S", 1.0)
    (answer,) = RemoteGate(theirs, JUDGE, ["gun"]).judge_prompts(["a cat"])
    assert isinstance(answer, Fault)
    assert answer.cause is Cause.GATE_DOWN
    assert "no node has 0.5 of a GPU for the gate: set FARM_GATE_DEVICE=cpu" in answer.detail
