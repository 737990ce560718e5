"""The short storm of `make test`; `make chaos` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.run import run


@pytest.mark.timeout(600)
def test_every_accepted_job_ends_once_whatever_is_killed(tmp_path: Path) -> None:
    report = run(tmp_path, kills=5, seed=3, flat=True, say=print)
    assert report.wrong == []
    assert report.kills.total() == 5
    assert report.verified == report.states["published"] > 0
