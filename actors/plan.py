"""Which gangs there may be: the declared pools, and one of one rank for each other model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from farm.config import PoolSpec, Settings
from farm.errors import BadInput, nearest
from farm.ports import ModelCard

MOST = 256  # groups in flight


def pools_of(settings: Settings, cards: Mapping[str, ModelCard]) -> tuple[PoolSpec, ...]:
    for number, pool in enumerate(settings.pools):
        if pool.model not in cards:
            known = nearest(pool.model, cards)
            raise BadInput(f"no model is called {pool.model!r}", field=f"pools.{number}.model", fix=known)
    declared = {pool.model for pool in settings.pools}
    drawn = (name for name, card in cards.items() if card.rendered and name not in declared)
    return (*settings.pools, *(PoolSpec(model=name) for name in drawn))


def groups_of(
    settings: Settings, cards: Mapping[str, ModelCard], lacking: Callable[[ModelCard, Path | None], str]
) -> int:
    """Those in flight that keep every gang busy: one is drawn, and the next is judged and waits for the gang while the
    last is signed. More would only wait, leased, while others of the queue are more urgent. A model without a pool
    counts where its files are there now."""
    folder = Path(settings.models) if settings.models else None
    declared = {pool.model for pool in settings.pools}
    others = [pool for pool in pools_of(settings, cards) if pool.model not in declared]
    ready = [pool for pool in others if not lacking(cards[pool.model], folder)]
    return min(MOST, 2 * max(1, sum(pool.max for pool in (*settings.pools, *ready))))


def precision_of(precision: str, device: str) -> str:
    """What is computed in on a device: `cpu`, or `cuda` with or without a number."""
    if precision not in ("auto", "fp8"):
        return precision
    return "bfloat16" if device.startswith("cuda") else "float32"
