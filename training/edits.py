"""Edits of a scene: the scene before, the scene after, and the sentence that asks for it. What is not named stays.

Scenes before an edit have one shape, or one or two of which one is to go. Large shapes are not moved: they would come
to lie over where they were.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from training.shapes import COLOURS, PLACES, SHAPES, Item, Scene, any_canvas, invent, put
from training.words import is_held_out, say, say_item, say_place, with_articles

ASK_RECOLOUR = ("make {} {}", "make {} {}", "change {} to {}", "turn {} {}", "paint {} {}", "colour {} {}")
ASK_GROUND = (
    "make the background {}",
    "make the background {}",
    "change the background to {}",
    "turn the background {}",
    "paint the background {}",
    "put it on a {} background",
)
ASK_SHAPE = ("turn {} into a {}", "change {} into a {}", "replace {} with a {}", "make {} a {}")
ASK_MOVE = ("move {} to the {}", "move {} to the {}", "put {} at the {}", "shift {} to the {}")
ASK_ADD = ("add {} {}", "add {} {}", "draw {} {}", "put {} {}")
ASK_REMOVE = ("remove {}", "remove {}", "take away {}", "delete {}", "erase {}")


@dataclass(frozen=True)
class Edit:
    """`target` is the place in the list of items of the one that changes; None for the ground."""

    kind: str
    before: Scene
    after: Scene
    sentence: str
    target: int | None


def name(rng: random.Random, scene: Scene, index: int) -> str:
    """Enough words to tell the item from the other one."""
    item = scene.items[index]
    alone = sum(other.shape == item.shape for other in scene.items) == 1
    shape = say(rng, item.shape)
    if len(scene.items) == 1 and rng.random() < 0.1:
        return "the shape"
    return f"the {shape}" if alone and rng.random() < 0.6 else f"the {item.colour} {shape}"


def with_item(scene: Scene, index: int, item: Item) -> Scene:
    return replace(scene, items=(*scene.items[:index], item, *scene.items[index + 1 :]))


def free_colours(scene: Scene) -> list[str]:
    used = {*scene.ground, *(item.colour for item in scene.items)}
    return [colour for colour in COLOURS if colour not in used]


def recolour(rng: random.Random, scene: Scene) -> Edit:
    index, colour = rng.randrange(len(scene.items)), rng.choice(free_colours(scene))
    after = with_item(scene, index, replace(scene.items[index], colour=colour))
    return Edit("recolour", scene, after, rng.choice(ASK_RECOLOUR).format(name(rng, scene, index), colour), index)


def repaint(rng: random.Random, scene: Scene) -> Edit:
    colour = rng.choice(free_colours(scene))
    after = replace(scene, split="plain", ground=(colour,))
    return Edit("background", scene, after, rng.choice(ASK_GROUND).format(colour), None)


def reshape(rng: random.Random, scene: Scene) -> Edit:
    index = rng.randrange(len(scene.items))
    item = scene.items[index]
    shape = rng.choice([other for other in SHAPES if other != item.shape])
    after = with_item(scene, index, replace(item, shape=shape))
    return Edit("shape", scene, after, rng.choice(ASK_SHAPE).format(name(rng, scene, index), say(rng, shape)), index)


def move(rng: random.Random, scene: Scene) -> Edit | None:
    index, place = rng.randrange(len(scene.items)), rng.choice(list(PLACES))
    item = scene.items[index]
    spot = put((scene.width, scene.height), item.shape, item.colour, item.size, place)
    moved = replace(item, place=place, x=spot.x, y=spot.y)
    far = max(abs(moved.x - item.x), abs(moved.y - item.y)) > 0.15 * min(scene.width, scene.height)
    if item.size == "large" or not far or crowded(scene, moved, index):
        return None
    where = f"{place} corner" if " " in place else place
    return Edit(
        "move",
        scene,
        with_item(scene, index, moved),
        rng.choice(ASK_MOVE).format(name(rng, scene, index), where),
        index,
    )


def add(rng: random.Random, scene: Scene) -> Edit | None:
    colour, size = rng.choice(free_colours(scene)), rng.choice(("small", "small", "medium"))
    place = rng.choice(list(PLACES))
    item = put((scene.width, scene.height), rng.choice(SHAPES), colour, size, place)
    if crowded(scene, item, None):
        return None
    words = rng.choice(ASK_ADD).format(say_item(rng, item), say_place(rng, place))
    return Edit("add", scene, replace(scene, items=(*scene.items, item)), words, len(scene.items))


def remove(rng: random.Random, scene: Scene) -> Edit:
    index = rng.randrange(len(scene.items))
    after = replace(scene, items=scene.items[:index] + scene.items[index + 1 :])
    return Edit("remove", scene, after, rng.choice(ASK_REMOVE).format(name(rng, scene, index)), index)


def crowded(scene: Scene, item: Item, index: int | None) -> bool:
    inside = item.width / 2 <= min(item.x, item.y, scene.width - item.x, scene.height - item.y)
    return not inside or any(item.touches(other, 4) for i, other in enumerate(scene.items) if i != index)


KINDS: dict[str, Callable[[random.Random, Scene], Edit | None]] = {
    "recolour": recolour,
    "background": repaint,
    "shape": reshape,
    "move": move,
    "add": add,
    "remove": remove,
}


def any_scene(rng: random.Random, canvas: tuple[int, int], items: int) -> Scene:
    return invent(rng, items, canvas)


def invent_edit(
    rng: random.Random,
    kind: str,
    canvas: tuple[int, int] | None = None,
    held_out: bool = False,
    scene: Callable[[random.Random, tuple[int, int], int], Scene] = lambda rng, canvas, items: invent(
        rng, items, canvas
    ),
) -> Edit:
    """An edit of that kind of a scene at random, with a sentence from training's share or the evaluation's.

    Edits have few sentences, so what is held out is the sentence together with what the scene shows.
    """
    while True:
        items = rng.choice((1, 2)) if kind == "remove" else 1
        edit = KINDS[kind](rng, scene(rng, canvas or any_canvas(rng), items))
        if edit is not None and is_held_out(signature(edit)) == held_out:
            return replace(edit, sentence=with_articles(edit.sentence))


def signature(edit: Edit) -> str:
    items = ", ".join(f"{item.size} {item.colour} {item.shape} {item.place}" for item in edit.before.items)
    return f"{edit.sentence} | {items} on {' and '.join(edit.before.ground)}"
