"""Which gangs there may be: the declared pools, their stages apart, and one of one rank for each other model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from actors.stages import WHOLE, Stage
from farm.config import GangSpec, PoolSpec, Settings
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


def divided(pool: PoolSpec) -> list[tuple[tuple[Stage, ...], PoolSpec]]:
    """Its gangs with the stages that they do, in the order of a job's path; a stage that runs apart as if it were a
    pool of its own."""
    apart = {Stage.ENCODE: pool.encoders, Stage.DECODE: pool.decoders}
    own = tuple(stage for stage in WHOLE if apart.get(stage) is None)
    before = [((Stage.ENCODE,), _alone(pool, Stage.ENCODE, pool.encoders))] if pool.encoders else []
    after = [((Stage.DECODE,), _alone(pool, Stage.DECODE, pool.decoders))] if pool.decoders else []
    return [*before, (own, pool), *after]


def _alone(pool: PoolSpec, stage: Stage, spec: GangSpec) -> PoolSpec:
    """Of one rank. Where it names no device, the pool's is meant."""
    given = {name: getattr(spec, name) for name in GangSpec.model_fields} | {"device": spec.device or pool.device}
    fixed = {"name": f"{pool.called}/{stage}", "tensor": 1, "sequence": 1, "encoders": None, "decoders": None}
    return pool.model_copy(update=given | fixed)


def spare_gpus(settings: Settings, cards: Mapping[str, ModelCard], there: float) -> float:
    """Of those of the cluster, what is left with every gang that there may be."""
    alone = [one for pool in pools_of(settings, cards) for _, one in divided(pool)]
    return there - sum(one.max * one.ranks * _gpus_of_rank(one, settings.device) for one in alone)


def _gpus_of_rank(pool: PoolSpec, device: str) -> float:
    if pool.gpus is not None:
        return pool.gpus
    return float((pool.device or device) != "cpu")


def device_of(device: str, gpus: float) -> str:
    """Of a rank of so many GPUs."""
    return ("cuda" if gpus else "cpu") if device == "auto" else device


def precision_of(precision: str, device: str) -> str:
    """What is computed in on a device."""
    if precision not in ("auto", "fp8"):
        return precision
    return "bfloat16" if device == "cuda" else "float32"
