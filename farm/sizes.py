"""Which sizes a model draws, and which of them is nearest to the one asked for. Pure."""

from __future__ import annotations

import math

from farm.ports import ModelCard

TOLERANCE = 0.15  # how far, as a logarithm, a size may be from the ratio it stands for


def nearest_side(side: float, card: ModelCard) -> int:
    """The nearest multiple of the grid within the model's limits."""
    low, high = math.ceil(card.min_side / card.grid), card.max_side // card.grid
    return card.grid * min(max(round(side / card.grid), low), high)


def nearest_size(width: float, height: float, card: ModelCard) -> tuple[int, int]:
    """The size the model draws that keeps the shape as well as its limits allow."""
    area = width * height
    scale = math.sqrt(min(max(area, card.min_pixels), card.max_pixels) / area)
    across, down = nearest_side(width * scale, card), nearest_side(height * scale, card)
    while across * down > card.max_pixels and max(across, down) > card.min_side:
        across, down = (across - card.grid, down) if across >= down else (across, down - card.grid)
    while across * down < card.min_pixels and min(across, down) < card.max_side:
        across, down = (across + card.grid, down) if across <= down else (across, down + card.grid)
    return across, down


def of_ratio(ratio: float, card: ModelCard) -> tuple[int, int, bool]:
    """The size of this shape, of those the model prefers or with about as many pixels as its own, and whether it keeps
    the shape."""
    free = nearest_size(card.side * math.sqrt(ratio), card.side / math.sqrt(ratio), card)
    width, height = min(card.sizes or (free,), key=lambda size: _away(size, ratio))
    return width, height, _away((width, height), ratio) <= TOLERANCE


def of_parent(width: int, height: int, card: ModelCard) -> tuple[int, int]:
    """The size of the picture that an edit starts from, or of those the model draws the nearest to it."""
    across, down = nearest_size(width, height, card)
    if (across, down) != (width, height) and card.sizes:
        across, down, _ = of_ratio(width / height, card)
    return across, down


def _away(size: tuple[int, int], ratio: float) -> float:
    return abs(math.log(size[0] / size[1] / ratio))
