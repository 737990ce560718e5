"""What becomes of the work of one stage that the next one refuses, loses or is told to stop, told without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray

from actors import cluster
from actors.gang import Gang
from actors.pool import Pool
from actors.stages import Passed
from farm.config import GangSpec, PoolSpec, Settings
from farm.errors import Fault
from farm.job import Cause
from farm.ports import Frame, Rendered
from tests.actors.conftest import CARDS, request_of
from tests.actors.test_tending import stand


def test_where_a_stage_refuses_what_another_has_made_both_gangs_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them has loaded files that were changed since; built anew they have the same."""
    settings = Settings(home=tmp_path, pools=(PoolSpec(model="flat", encoders=GangSpec()),))
    pool = Pool(settings, CARDS, shard="tests.actors.fakes:load_staged")
    words, rest = pool.places["flat/encode"][0], pool.places["flat"][0]
    for place in (words, rest):
        stand(place)
    assert words.gang
    giver, removed = words.gang.id, list[str]()
    refusal = Fault(Cause.WEIGHTS_MISSING, "other files", gang=giver)

    def render(gang: Gang, order: Any, *_: Any) -> list[Any]:
        return [Passed("made", 0.1)] if order.hands_on else [refusal]

    monkeypatch.setattr(cluster, "connect", lambda _: "")
    monkeypatch.setattr(Gang, "render", render)
    monkeypatch.setattr(Gang, "remove", lambda gang: removed.append(gang.id))
    assert pool.render([request_of("a")], lambda: False) == [refusal]
    assert sorted(removed) == ["flat.0", "flat/encode.0"]
    assert not words.lock.locked()
    assert not rest.lock.locked()

    stand(words)  # which is busy when what it has made is refused
    words.gang = Gang("flat/encode.1", [], None, None)
    words.lock.acquire()
    pool._other_files("flat/encode.1")
    assert not words.usable
    pool._leave(words)
    assert removed[-1] == "flat/encode.1"


def test_who_is_cancelled_among_others_stops_no_decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others' pictures are drawn already."""
    settings = Settings(home=tmp_path, pools=(PoolSpec(model="flat", decoders=GangSpec()),))
    pool = Pool(settings, CARDS, shard="tests.actors.fakes:load_staged")
    for place in pool._all():
        stand(place)
    picture, gone = Rendered(Frame(1, 1, b"rgb"), "flat.0", "w"), list[int]()

    def render(gang: Gang, order: Any, cancelled: Any, *_: Any) -> list[Any]:
        if order.hands_on:
            gone.append(1)
            return [Passed("drawn", 0.1)]
        return [Fault(Cause.LEASE_LOST, "stopped") if cancelled() else picture]

    monkeypatch.setattr(cluster, "connect", lambda _: "")
    monkeypatch.setattr(Gang, "render", render)
    assert pool.render([request_of("a")], lambda: bool(gone)) == [picture]


class Loses:
    """Two stages; what the first has made is lost so many times."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, times: int, tensor: int = 1) -> None:
        settings = Settings(home=folder, pools=(PoolSpec(model="flat", tensor=tensor, encoders=GangSpec()),))
        self.pool = Pool(settings, CARDS, shard="tests.actors.fakes:load_staged")
        self.words, self.rest = self.pool.places["flat/encode"][0], self.pool.places["flat"][0]
        self.times, self.tensor, self.asked = times, tensor, list[str]()
        for place in (self.words, self.rest):
            stand(place)
        monkeypatch.setattr(cluster, "connect", lambda _: "")
        monkeypatch.setattr(Gang, "render", lambda one, order, *_: self.render(one.id, order.hands_on))
        monkeypatch.setattr(Gang, "remove", lambda one: stand(self.rest))  # another one is there at once

    def render(self, gang: str, hands_on: bool) -> list[Any]:
        self.asked.append(gang)
        if hands_on:
            return [Passed("words", 0.1)]
        if self.asked.count(gang) <= self.times:
            lost = ray.exceptions.ObjectReconstructionFailedError("ab" * 28)
            raise ray.exceptions.RayTaskError("render", "traceback", lost).as_instanceof_cause()
        return [Rendered(Frame(1, 1, b"rgb"), gang, "w")]


@pytest.mark.parametrize("tensor", [1, 2])
def test_what_is_lost_on_its_way_is_made_once_more_and_nobody_pays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensor: int
) -> None:
    stages = Loses(tmp_path, monkeypatch, 1, tensor)
    before = stages.rest.gang
    (answer,) = stages.pool.render([request_of("a")], lambda: False)
    assert isinstance(answer, Rendered)
    assert stages.asked == ["flat/encode.0", "flat.0"] * 2
    assert (stages.rest.gang is before) == (tensor == 1), "ranks that were given it wait for those that were not"


def test_what_is_lost_again_and_again_has_an_end_and_names_no_gang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = Loses(tmp_path, monkeypatch, 9)
    with pytest.raises(Fault) as caught:
        stages.pool.render([request_of("a")], lambda: False)
    assert (caught.value.cause, caught.value.gang) == (Cause.GANG_DIED, None)
    assert len(stages.asked) == 4
    assert stages.rest.usable
    assert not stages.rest.form.lost
    assert not stages.rest.lock.locked()
