"""How many groups are in flight, by the gangs that there may be."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.models import catalogue
from actors.plan import MOST, groups_of
from farm.config import PoolSpec, Settings
from farm.ports import ModelCard

TINY, DEV = PoolSpec(model="tiny", max=3), PoolSpec(model="flux1-dev", max=2)


@pytest.mark.parametrize(
    ("pools", "there", "groups"),
    [
        ((), {"tiny"}, 2),
        ((), {"tiny", "flux1-dev"}, 4),
        ((), set(), 2),
        ((TINY,), {"tiny"}, 6),
        ((TINY,), {"tiny", "flux1-dev"}, 8),
        ((TINY, DEV, DEV.model_copy(update={"name": "slow"})), set(), 14),
        ((PoolSpec(model="tiny", max=1000),), set(), MOST),
    ],
)
def test_two_groups_are_in_flight_for_each_gang_that_there_may_be(
    pools: tuple[PoolSpec, ...], there: set[str], groups: int
) -> None:
    asked: list[Path | None] = []

    def lacking(card: ModelCard, folder: Path | None) -> str:
        asked.append(folder)
        return "" if card.name in there else "no files"

    assert groups_of(Settings(pools=pools, models="/m"), catalogue(), lacking) == groups
    assert set(asked) == {Path("/m")}
