"""`farm access`: a key is shown once, works, is listed without itself, and stops working."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from farm.access import Access
from farm.cli import _run
from farm.db import connect


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Access:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FARM_HOME", str(tmp_path / "home"))
    return Access(connect(f"sqlite:///{tmp_path}/home/farm.db"))


def test_a_key_lives_from_add_to_revoke(home: Access, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["access", "add", "ann", "--role", "reviewer", "--project", "films"]) == 0
    key = capsys.readouterr().out.strip()
    found = home.find_key(key)
    assert found is not None
    assert (found.project_id, found.role, found.name) == ("films", "reviewer", "ann")
    assert _run(["access", "ls", "--project", "films", "--json"]) == 0
    said = capsys.readouterr().out
    assert key not in said
    assert [row["name"] for row in json.loads(said)] == ["ann"]
    assert _run(["access", "revoke", found.id]) == 1  # of another project: not found
    assert _run(["access", "revoke", "ann", "--project", "films"]) == 1
    assert "give the id that `farm access ls` shows" in capsys.readouterr().err
    assert _run(["access", "revoke", found.id, "--project", "films"]) == 0
    assert home.find_key(key) is None
    assert _run(["access", "ls", "--project", "films"]) == 0
    heads, line = capsys.readouterr().out.splitlines()
    assert heads.split() == ["id", "name", "role", "created", "revoked"]
    assert line.count(" UTC") == 2
    home.engine.dispose()


def test_an_unknown_role_names_the_nearest(home: Access, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["access", "add", "bob", "--role", "reviewr"]) == 2
    assert "did you mean 'reviewer'" in capsys.readouterr().err
    home.engine.dispose()
