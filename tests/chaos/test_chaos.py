"""The short storm of `make test`; `make chaos` and `make chaos-cluster` are the long ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.cluster import run_cluster
from tests.chaos.run import run
from tests.chaos.victims import WEIGHTS


@pytest.mark.timeout(600)
def test_every_accepted_job_ends_once_whatever_is_killed(tmp_path: Path) -> None:
    report = run(tmp_path, kills=len(WEIGHTS), seed=3, flat=True, say=print)
    assert report.wrong == []
    assert report.kills == dict.fromkeys(WEIGHTS, 1)
    assert report.verified == report.states["published"] > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_accepted_job_ends_once_on_a_cluster_whose_nodes_and_head_are_killed(tmp_path: Path) -> None:
    report = run_cluster(tmp_path, jobs=24, kills=4, seed=5, say=print)
    assert report.wrong == []
    assert report.kills.total() > 0
    assert report.verified == report.states["published"] > 0
