"""`farm verify --published` goes on past a file that is gone or rotten, and stops where the store is away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from farm.cli import _run
from farm.config import load
from farm.db import connect, migrate
from farm.store import open_store
from provenance import keys
from tests.queue.conftest import Desk, finished


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files of three published jobs, none of them a picture."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FARM_HOME", str(tmp_path))
    settings = load()
    keys.init(tmp_path)
    engine = connect(settings.database_url)
    migrate(engine)
    desk, store = Desk(engine), open_store(settings.store_url)
    desk.submit(count=3)
    made = [(lease, store.put(str(lease.job_id).encode())) for lease in desk.claim()]
    desk.queue.publish([finished(lease, desk.judge(lease) or 0, key=key) for lease, key in made])
    engine.dispose()
    return [tmp_path / "store" / key[:2] / key[2:4] / key for _, key in made]


def test_one_rotten_file_keeps_nobody_from_the_others(stored: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    rotten, gone, _ = stored
    rotten.write_bytes(b"rot")
    gone.unlink()
    assert _run(["verify", "--published", "--json"]) == 1
    told = capsys.readouterr()
    rows = [json.loads(line) for line in told.out.splitlines()]
    assert [(row["verdict"], row["codes"]) for row in rows] == [
        ("Invalid", ["farm.file.corrupt"]),
        ("Unreadable", ["farm.file"]),
        ("Unreadable", ["farm.type.unknown"]),
    ]
    assert "0 of 3 are Trusted" in told.err


def test_a_store_that_is_away_ends_it(stored: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    stored[1].unlink()
    stored[1].mkdir()
    assert _run(["verify", "--published"]) == 1
    told = capsys.readouterr()
    assert "cannot be used" in told.err
    assert "are Trusted" not in told.err
