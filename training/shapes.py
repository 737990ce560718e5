"""Drawn scenes: one or two flat shapes on a plain or two-coloured ground. A scene is data; `draw` makes its pixels."""

import math
import random
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Pixels = NDArray[np.uint8]
Split = Literal["plain", "sides", "halves"]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 170, 70),
    "blue": (40, 80, 220),
    "yellow": (245, 215, 50),
    "orange": (245, 135, 25),
    "purple": (145, 60, 185),
    "white": (250, 250, 250),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
SPLITS = (86.0, 7.0, 7.0)  # plain, sides, halves
SIZES = {"small": 0.36, "medium": 0.48, "large": 0.64}
PLACES: dict[str, tuple[int, int]] = {
    "centre": (0, 0),
    "left": (-1, 0),
    "right": (1, 0),
    "top": (0, -1),
    "bottom": (0, 1),
    "top left": (-1, -1),
    "top right": (1, -1),
    "bottom left": (-1, 1),
    "bottom right": (1, 1),
}
# All but the 128 pixel square are 96 pixels on the short side: so there are two sets of shapes to learn and not six.
CANVAS_WEIGHTS = {
    (96, 96): 28.0,
    (128, 128): 28.0,
    (128, 96): 8.0,
    (96, 128): 8.0,
    (144, 96): 6.0,
    (96, 144): 6.0,
    (176, 96): 5.0,
    (96, 176): 5.0,
    (192, 96): 3.0,
    (96, 192): 3.0,
}
CANVASES = tuple(CANVAS_WEIGHTS)
GRID = 8  # pixels: a latent's side
DETAIL = 4  # supersampling


@dataclass(frozen=True)
class Item:
    """One shape. Its centre and width are in pixels; `size` and `place` are the words that gave them."""

    shape: str
    colour: str
    size: str
    place: str
    x: float
    y: float
    width: float

    def box(self, grow: float = 0.0) -> tuple[float, float, float, float]:
        half = self.width / 2 + grow
        return self.x - half, self.y - half, self.x + half, self.y + half

    def touches(self, other: "Item", gap: float) -> bool:
        a, b = self.box(gap), other.box()
        return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@dataclass(frozen=True)
class Scene:
    """`ground` has one colour when `split` is plain; else left and right (sides), or top and bottom (halves)."""

    width: int
    height: int
    split: Split
    ground: tuple[str, ...]
    items: tuple[Item, ...]


def outline(shape: str) -> list[tuple[float, float]]:
    """The corners of a shape made of straight lines, in a box from -1 to 1."""
    if shape == "square":
        return [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]
    if shape == "triangle":
        return [(0.0, -0.9), (1.0, 0.85), (-1.0, 0.85)]
    if shape == "cross":
        a, b = 1.0, 0.34
        return [(-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b),
                (b, a), (-b, a), (-b, b), (-a, b), (-a, -b), (-b, -b)]  # fmt: skip
    turns = [(1.05 if i % 2 == 0 else 0.5, math.pi * (i / 5 - 0.5)) for i in range(10)]
    return [(r * math.cos(t), r * math.sin(t) + 0.09) for r, t in turns]


def stencil(shape: str, width: float, x: float, y: float, size: tuple[int, int]) -> Pixels:
    """How much of each pixel the shape covers, 0 to 255."""
    canvas = Image.new("L", (size[0] * DETAIL, size[1] * DETAIL), 0)
    pen, half = ImageDraw.Draw(canvas), width / 2
    box = tuple(DETAIL * v - 0.5 for v in (x - half, y - half, x + half, y + half))
    if shape in ("circle", "ring"):
        pen.ellipse(box, fill=255)
    else:
        pen.polygon(
            [(DETAIL * (x + half * u) - 0.5, DETAIL * (y + half * v) - 0.5) for u, v in outline(shape)], fill=255
        )
    if shape == "ring":
        hole = 0.52 * half
        pen.ellipse(tuple(DETAIL * v - 0.5 for v in (x - hole, y - hole, x + hole, y + hole)), fill=0)
    return np.asarray(canvas.reduce(DETAIL))


def draw(scene: Scene) -> Pixels:
    """The scene's pixels, height x width x 3."""
    picture = np.empty((scene.height, scene.width, 3), np.uint8)
    picture[:] = COLOURS[scene.ground[0]]
    if scene.split == "sides":
        picture[:, scene.width // 2 :] = COLOURS[scene.ground[1]]
    elif scene.split == "halves":
        picture[scene.height // 2 :] = COLOURS[scene.ground[1]]
    for item in scene.items:
        left, top, right, bottom = (int(v) for v in item.box(2))
        left, top = max(left, 0), max(top, 0)
        right, bottom = min(right, scene.width), min(bottom, scene.height)
        cover = stencil(item.shape, item.width, item.x - left, item.y - top, (right - left, bottom - top))
        part = picture[top:bottom, left:right].astype(np.float32)
        share = cover[..., None].astype(np.float32) / 255
        mixed = part + share * (np.array(COLOURS[item.colour], np.float32) - part)
        picture[top:bottom, left:right] = (mixed + 0.5).astype(np.uint8)
    return picture


def put(canvas: tuple[int, int], shape: str, colour: str, size: str, place: str) -> Item:
    """An item where its words say, on the autoencoder's grid and wholly inside: words settle the whole picture. A model
    as small as ours learns that in minutes, and would need days to learn all the ways a shape can lie between."""
    short = min(canvas)
    width = to_grid(short * SIZES[size])
    room = GRID * math.ceil((width / 2 + 1) / GRID)

    def along(side: int, direction: int) -> float:
        return min(max(to_grid(side * (0.5 + 0.26 * direction)), room), side - room)

    across, down = PLACES[place]
    return Item(shape, colour, size, place, along(canvas[0], across), along(canvas[1], down), width)


def to_grid(length: float) -> int:
    return GRID * round(length / GRID)


def opposite(rng: random.Random, place: str) -> str:
    """A place that leaves room for a second shape."""
    across, down = PLACES[place]
    if across and down and rng.random() < 0.6:
        across, down = (-across, down) if rng.random() < 0.5 else (across, -down)
    else:
        across, down = -across, -down
    return next(name for name, where in PLACES.items() if where == (across, down))


def any_canvas(rng: random.Random) -> tuple[int, int]:
    return rng.choices(CANVASES, list(CANVAS_WEIGHTS.values()))[0]


def invent(
    rng: random.Random,
    items: int | None = None,
    canvas: tuple[int, int] | None = None,
    splits: tuple[float, float, float] = SPLITS,
    shapes: tuple[float, ...] | None = None,
) -> Scene:
    """A scene at random: mostly one shape, mostly a plain ground, which two shapes always have."""
    canvas = canvas or any_canvas(rng)
    count = items or (2 if rng.random() < 0.15 else 1)
    split: Split = rng.choices(("plain", "sides", "halves"), splits)[0] if count == 1 else "plain"
    colours = rng.sample(list(COLOURS), 4)
    ground = tuple(colours[: 1 if split == "plain" else 2])
    drawn = rng.choices(SHAPES, shapes, k=count) if shapes else [rng.choice(SHAPES) for _ in range(count)]
    if count == 1:
        place = "centre" if rng.random() < 0.4 else rng.choice(list(PLACES))
        size = rng.choices(list(SIZES), (3, 4, 3))[0]
        return Scene(*canvas, split, ground, (put(canvas, drawn[0], colours[2], size, place),))
    place = rng.choice([name for name in PLACES if name != "centre"])
    pair = place, opposite(rng, place)
    while True:
        sizes = [rng.choices(("small", "medium"), (2, 1))[0] for _ in range(2)]
        made = [put(canvas, drawn[i], colours[2 + i], sizes[i], pair[i]) for i in range(2)]
        if not made[0].touches(made[1], 4):
            return Scene(*canvas, split, ground, tuple(made))
