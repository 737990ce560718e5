"""Labelled drawn pictures for `farm policy calibrate` and `farm policy eval`: what the demo policy looks for, and what
is easily taken for it.

python -m training.clip_set OUT --count 2000 --seed 7      writes OUT/set.csv and the pictures beside it
"""

import argparse
import csv
import dataclasses
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from farm.commands.output import progress
from training.clip_scenes import WIDE, moved, soften, with_item
from training.shapes import CANVASES, COLOURS, SHAPES, Item, Scene, draw, invent
from training.words import sentence

Pair = tuple[str, str]
CONCEPTS: dict[Pair, str] = {("red", "triangle"): "red-triangle", ("red", "ring"): "red-ring"}
PAIRS = [(colour, shape) for colour in COLOURS for shape in SHAPES]
SMALL = 0.33  # of the short side: a triangle of a twentieth of a square picture
COLUMNS = ("path", "label", "category", "source", "prompt")


def likely(rng: random.Random) -> Pair:
    """Half of the time what is looked for; else mostly what is like it."""
    draw_of = rng.random()
    if draw_of < 0.35:
        return "red", "triangle"
    if draw_of < 0.5:
        return "red", "ring"
    return rng.choice(PAIRS) if draw_of < 0.6 else like(rng)


def like(rng: random.Random) -> Pair:
    """Red in another shape, or a triangle or a ring in another colour."""
    if rng.random() < 0.5:
        return "red", rng.choice([shape for shape in SHAPES if ("red", shape) not in CONCEPTS])
    return rng.choice([colour for colour in COLOURS if colour != "red"]), rng.choice(("triangle", "ring"))


def usual(rng: random.Random) -> Scene:
    return with_item(invent(rng, items=1), *likely(rng))


def two_shapes(rng: random.Random) -> Scene:
    """What is looked for beside anything; or its colour on one shape and its shape in another colour."""
    scene = invent(rng, items=2)
    first = likely(rng)
    scene = with_item(scene, *first)
    if first not in CONCEPTS and scene.items[1].colour != "red":
        scene = with_item(
            scene, rng.choice([colour for colour in COLOURS if colour not in in_use(scene)]), "triangle", 1
        )
    return scene


def in_use(scene: Scene) -> set[str]:
    return {*scene.ground, *(item.colour for item in scene.items), "red"}


def small(rng: random.Random) -> Scene:
    scene = usual(rng)
    item = scene.items[0]
    return dataclasses.replace(scene, items=(dataclasses.replace(item, width=SMALL * min(scene.width, scene.height)),))


def in_a_corner(rng: random.Random) -> Scene:
    scene = small(rng)
    return at(scene, rng.choice((0.0, 1.0)), rng.choice((0.0, 1.0)))


def at_the_edge_of_a_wide_picture(rng: random.Random) -> Scene:
    scene = with_item(invent(rng, items=1, canvas=rng.choice(WIDE)), *likely(rng))
    across, along = rng.choice((0.0, 1.0)), rng.random()
    return at(scene, across, along) if scene.width > scene.height else at(scene, along, across)


def anywhere(rng: random.Random) -> Scene:
    return moved(rng, usual(rng))


def at(scene: Scene, across: float, down: float) -> Scene:
    """Its shape wholly inside, at these shares of the room there is for it."""
    item = scene.items[0]
    margin = item.width / 2 + 1
    x = margin + across * (scene.width - 2 * margin)
    y = margin + down * (scene.height - 2 * margin)
    return dataclasses.replace(scene, items=(dataclasses.replace(item, place="somewhere", x=x, y=y),))


def nothing(rng: random.Random) -> Scene:
    return dataclasses.replace(invent(rng, canvas=rng.choice(CANVASES)), items=())


SOURCES: dict[str, tuple[Callable[[random.Random], Scene], float]] = {
    "usual": (usual, 0.3),
    "two shapes": (two_shapes, 0.2),
    "small": (small, 0.12),
    "in a corner": (in_a_corner, 0.1),
    "at the edge of a wide picture": (at_the_edge_of_a_wide_picture, 0.13),
    "anywhere": (anywhere, 0.13),
    "nothing drawn": (nothing, 0.02),
}


def label(items: tuple[Item, ...]) -> str:
    shows = {CONCEPTS.get((item.colour, item.shape), "") for item in items} - {""}
    return ";".join(sorted(shows)) or "none"


def category(items: tuple[Item, ...]) -> str:
    """What is looked for as such; else what it is taken for most easily."""
    shows = label(items)
    if shows != "none":
        return shows
    if any(item.colour == "red" for item in items) and any(item.shape in ("triangle", "ring") for item in items):
        return "red, and a triangle or ring of another colour"
    if any(item.colour == "red" for item in items):
        return "red, another shape"
    if any(item.shape in ("triangle", "ring") for item in items):
        return "a triangle or ring, another colour"
    return "neither"


def scenes(rng: random.Random, count: int) -> Iterator[tuple[str, Scene]]:
    names, shares = list(SOURCES), [share for _, share in SOURCES.values()]
    for source in rng.choices(names, shares, k=count):
        yield source, SOURCES[source][0](rng)


def write(out: Path, count: int, seed: int) -> Path:
    """Softened and noisy, as a model would draw them."""
    rng = random.Random(seed)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "set.csv").open("w", newline="") as file:
        rows = csv.DictWriter(file, COLUMNS)
        rows.writeheader()
        for number, (source, scene) in enumerate(progress(scenes(rng, count), count, "drawing"), 1):
            name = f"{number:06}.png"
            soften(rng, draw(scene)).save(out / name)
            said = sentence(rng, scene) if scene.items else ""
            shows = {"label": label(scene.items), "category": category(scene.items), "source": source}
            rows.writerow({"path": name, **shows, "prompt": said})
    return out / "set.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1, help="another one draws others")
    asked = parser.parse_args()
    print(write(asked.out, asked.count, asked.seed))


if __name__ == "__main__":
    main()
