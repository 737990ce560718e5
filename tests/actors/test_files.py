"""A pool whose model has no files here says so, before any job asks for it; without Ray."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from actors import models
from actors.cards import SCHNELL, TINY
from actors.pool import Pool
from farm.config import Settings
from farm.ports import GangState


def test_pools_say_whose_files_are_missing_and_when_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "TINY_FOLDER", tmp_path / "tiny")
    pool = Pool(Settings(home=tmp_path), {card.name: card for card in (TINY, SCHNELL)})
    pool.look()
    told = {row.model: row for row in pool.status()}
    assert {row.state for row in told.values()} == {GangState.LACKING}
    assert told["tiny"].waits_for.startswith("tiny lacks transformer")
    assert "flux1-schnell.safetensors" in told["flux1-schnell"].waits_for
    monkeypatch.undo()
    shutil.copytree(models.TINY_FOLDER, tmp_path / "tiny")
    monkeypatch.setattr(models, "TINY_FOLDER", tmp_path / "tiny")
    pool.look()
    assert {row.model: row.state for row in pool.status()} == {
        "tiny": GangState.GONE,
        "flux1-schnell": GangState.LACKING,
    }
