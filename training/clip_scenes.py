"""What the tiny CLIP learns from: softened crops of drawn scenes, with what each of them shows and does not show."""

import dataclasses
import io
import random
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from safety.clip import View, views
from training.shapes import COLOURS, SHAPES, Item, Pixels, Scene, draw, invent, stencil
from training.words import sentence

PAIRS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
WIDE = ((256, 96), (96, 256), (320, 96), (224, 112))
SHOWN, HIDDEN = 0.85, 0.15  # a shape seen more than this is there; less than this, it is not; between, nobody can say


@dataclass(frozen=True)
class Look:
    """One view of a scene. `shows` holds 1, 0 or NaN (nobody can say) for each of PAIRS."""

    pixels: Pixels
    shows: NDArray[np.float32]
    caption: str  # "" for a part of a scene


def with_colour(scene: Scene, index: int, colour: str) -> Scene:
    """The item gets that colour; whatever had it, ground included, gets the item's."""
    old = scene.items[index].colour
    swap = {old: colour, colour: old}
    items = tuple(dataclasses.replace(item, colour=swap.get(item.colour, item.colour)) for item in scene.items)
    return dataclasses.replace(scene, items=items, ground=tuple(swap.get(name, name) for name in scene.ground))


def with_shape(scene: Scene, index: int, shape: str) -> Scene:
    items = list(scene.items)
    items[index] = dataclasses.replace(items[index], shape=shape)
    return dataclasses.replace(scene, items=tuple(items))


def with_item(scene: Scene, colour: str, shape: str, index: int = 0) -> Scene:
    return with_shape(with_colour(scene, index, colour), index, shape)


def moved(rng: random.Random, scene: Scene) -> Scene:
    """One shape anywhere at all, flush with an edge or in a corner too."""
    item = scene.items[0]
    half = item.width / 2 + 1

    def along(side: int) -> float:
        return rng.choice((half, side - half, rng.uniform(half, side - half)))

    there = dataclasses.replace(item, place="somewhere", x=along(scene.width), y=along(scene.height))
    return dataclasses.replace(scene, items=(there,))


def invent_lesson(rng: random.Random) -> Scene:
    """Any scene, with more than their share of red things, triangles, both, and shapes at the edge."""
    scene = invent(rng, canvas=rng.choice(WIDE) if rng.random() < 0.1 else None)
    draw_of = rng.random()
    if draw_of < 0.15:
        scene = with_item(scene, "red", "triangle")
    elif draw_of < 0.28:
        scene = with_colour(scene, 0, "red")
    elif draw_of < 0.40:
        scene = with_shape(scene, 0, "triangle")
    if len(scene.items) == 2 and rng.random() < 0.3:
        scene = with_shape(scene, 1, "triangle") if scene.items[0].colour == "red" else with_colour(scene, 1, "red")
    if rng.random() < 0.04:
        return dataclasses.replace(scene, items=())
    return moved(rng, scene) if len(scene.items) == 1 and rng.random() < 0.35 else scene


def soften(rng: random.Random, picture: Pixels) -> Image.Image:
    """As a generative model would draw it: soft edges, tinted, noisy, compressed. Some stay as drawn."""
    image = Image.fromarray(picture)
    if rng.random() < 0.15:
        return image
    if rng.random() < 0.5:
        small = rng.uniform(0.4, 0.9)
        size = image.size
        image = image.resize((int(size[0] * small), int(size[1] * small)), Image.Resampling.BILINEAR)
        image = image.resize(size, Image.Resampling.BICUBIC)
    if rng.random() < 0.6:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 2.0)))
    noise = np.random.default_rng(rng.getrandbits(32))
    rough = np.asarray(image, np.float32) * rng.uniform(0.88, 1.1) + noise.uniform(-12, 12, 3)
    rough += noise.normal(0, rng.uniform(0, 9), rough.shape)
    image = Image.fromarray(rough.clip(0, 255).astype(np.uint8))
    if rng.random() < 0.3:
        data = io.BytesIO()
        image.save(data, "JPEG", quality=rng.randint(35, 92))
        image = Image.open(data).convert("RGB")
    return image


@cache
def points(shape: str) -> NDArray[np.float64]:
    """Points spread over a shape, in a box from -0.5 to 0.5."""
    cover = stencil(shape, 32, 16, 16, (32, 32)) > 127
    rows, columns = np.nonzero(cover)
    return np.stack([columns + 0.5, rows + 0.5], axis=1) / 32 - 0.5


def seen(item: Item, view: View) -> float:
    """The share of a shape that lies within a view."""
    where = points(item.shape) * item.width + (item.x, item.y)
    left, top, right, bottom = view.box
    inside = (where[:, 0] >= left) & (where[:, 0] < right) & (where[:, 1] >= top) & (where[:, 1] < bottom)
    return float(inside.mean())


def shown(scene: Scene, view: View) -> NDArray[np.float32]:
    shows = np.zeros(len(PAIRS), np.float32)
    for item in scene.items:
        share = seen(item, view)
        if share > HIDDEN:
            shows[PAIRS.index((item.colour, item.shape))] = 1 if share > SHOWN else np.nan
    return shows


def random_view(rng: random.Random, scene: Scene) -> View:
    if rng.random() < 0.5:
        return rng.choice(views(scene.width, scene.height))
    side = min(scene.width, scene.height) * rng.uniform(0.5, 1)
    left, top = rng.uniform(0, scene.width - side), rng.uniform(0, scene.height - side)
    return View("any", (left, top, left + side, top + side))


def looks(rng: random.Random, count: int, size: int) -> list[Look]:
    """`count` views of one scene, the whole first."""
    scene = invent_lesson(rng)
    picture = soften(rng, draw(scene))
    chosen = [views(scene.width, scene.height)[0], *(random_view(rng, scene) for _ in range(count - 1))]
    made = []
    for view in chosen:
        pixels = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box=view.box))
        caption = sentence(rng, scene) if view.name == "whole" and scene.items else ""
        made.append(Look(pixels, shown(scene, view), caption))
    return made
