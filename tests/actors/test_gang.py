"""What a gang is asked and how it is let go, told without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from actors import gang
from actors.gang import Gang
from actors.messages import Order
from actors.places import post_of
from farm.config import PoolSpec, Settings
from tests.actors.conftest import CARDS


class Late:
    """A rank whose call begins at the third look, for what it is given is still on its way."""

    def __init__(self) -> None:
        self.looks, self.stopped = 0, False

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=partial(self.asked, name)))

    def asked(self, name: str, *_: object) -> str:
        self.stopped = self.stopped or (name == "cancel" and self.looks >= 3)
        return name

    def wait(self, refs: Sequence[str], timeout: float) -> tuple[Sequence[str], Sequence[str]]:
        self.looks += 1
        return ([], refs) if self.looks < 9 and not self.stopped else (refs, [])


def test_a_call_that_has_not_begun_is_cancelled_when_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    rank = Late()
    monkeypatch.setattr(ray, "wait", rank.wait)
    monkeypatch.setattr(ray, "get", lambda refs, timeout=None: [])
    Gang("flat.0", [rank], None, None).render(Order("c1", (), 60.0), lambda: True)
    assert rank.stopped


def test_a_gang_whose_ranks_are_gone_is_cleared_away_and_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed = list[str]()
    monkeypatch.setattr(gang, "standing", lambda: ["flat.1.ab"])
    monkeypatch.setattr(gang, "_find", lambda gang_id, _: Gang(gang_id, [], None, None))
    monkeypatch.setattr(Gang, "remove", lambda one: removed.append(one.id))
    assert gang.attach(post_of(PoolSpec(model="flat"), CARDS["flat"], Settings(home=tmp_path), "a:b")) is None
    assert removed == ["flat.1.ab"]


def test_a_gang_that_cannot_be_removed_is_let_go_so_that_it_can_be_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_: object) -> None:
        raise ValueError("no such group")

    killed = list[object]()
    monkeypatch.setattr(ray, "kill", lambda actor, no_restart: killed.append(actor))
    monkeypatch.setattr(ray.util, "remove_placement_group", failing)
    with pytest.raises(ValueError, match="no such group"):
        Gang("flat.0", ["rank"], "group", "holder").remove()
    assert killed == ["rank", "holder"]
