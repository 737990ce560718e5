"""What the settings mean on this machine, and whether they can work, asked before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from farm.errors import BadInput, nearest

if TYPE_CHECKING:
    from farm.config import Settings


def ready_models(settings: Settings) -> list[str]:
    """Those whose files are there, in the folder of one of their pools or in that of all."""
    from actors.models import catalogue, lacking
    from actors.plan import pools_of

    cards = catalogue()
    places = {(pool.model, pool.weights or settings.models) for pool in pools_of(settings, cards)}
    ready = {model for model, place in places if not lacking(cards[model], Path(place) if place else None)}
    return [name for name in cards if name in ready]


def default_model(settings: Settings, ready: list[str]) -> str | None:
    """What a line that names no model means: what is set, else the only real one that is ready. The tiny one is meant
    only where nobody has spoken of others."""
    from actors.cards import TINY
    from actors.models import catalogue

    if settings.default_model:
        rendered = [name for name, card in catalogue().items() if card.rendered]
        if settings.default_model not in rendered:
            says = f"{settings.default_model!r} is no model that is rendered"
            raise BadInput(says, field="default_model", fix=nearest(settings.default_model, rendered))
        return settings.default_model
    real = [name for name in ready if name != TINY.name]
    if not real and not settings.models:
        return TINY.name
    return real[0] if len(real) == 1 else None
