"""Drawn frames and one gate on the bundled policy and encoder."""

import random
from collections.abc import Callable

import pytest

from farm.ports import Frame
from safety.gate import ClipGate, load_gate
from training.clip_scenes import with_item
from training.shapes import Item, Scene, draw, invent

Draw = Callable[..., Frame]


def as_frame(scene: Scene) -> Frame:
    return Frame(scene.width, scene.height, draw(scene).tobytes())


def shape_at(colour: str, shape: str, x: float, y: float, width: float, size: tuple[int, int]) -> Frame:
    return as_frame(Scene(*size, "plain", ("white",), (Item(shape, colour, "medium", "centre", x, y, width),)))


def some(colour: str, shape: str, seed: int = 0) -> Frame:
    return as_frame(with_item(invent(random.Random(seed), items=1, canvas=(128, 128)), colour, shape))


def flat(colour: tuple[int, int, int], size: tuple[int, int] = (96, 64)) -> Frame:
    return Frame(*size, bytes(colour) * (size[0] * size[1]))


@pytest.fixture(scope="session")
def gate() -> ClipGate:
    return load_gate("", "cpu")
