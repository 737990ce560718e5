"""Which gangs there may be: the declared pools, and one of one rank for each other model."""

from __future__ import annotations

from collections.abc import Mapping

from farm.config import PoolSpec, Settings
from farm.errors import BadInput, nearest
from farm.ports import ModelCard


def pools_of(settings: Settings, cards: Mapping[str, ModelCard]) -> tuple[PoolSpec, ...]:
    for number, pool in enumerate(settings.pools):
        if pool.model not in cards:
            known = nearest(pool.model, cards)
            raise BadInput(f"no model is called {pool.model!r}", field=f"pools.{number}.model", fix=known)
    declared = {pool.model for pool in settings.pools}
    drawn = (name for name, card in cards.items() if card.rendered and name not in declared)
    return (*settings.pools, *(PoolSpec(model=name) for name in drawn))


def precision_of(precision: str, device: str) -> str:
    """What the weights are kept in on a device: `cpu`, or `cuda` with or without a number."""
    if precision != "auto":
        return precision
    return "bfloat16" if device.startswith("cuda") else "float32"
