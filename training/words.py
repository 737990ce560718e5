"""Sentences for scenes, in varied wording, and which of them training never sees."""

import hashlib
import random

from training.shapes import Item, Scene

SAID = {
    "circle": ("circle", "circle", "circle", "disc"),
    "cross": ("cross", "cross", "cross", "plus"),
    "small": ("small", "small", "little", "tiny"),
    "large": ("large", "large", "big", "huge"),
    "medium": ("", "", "", "", "medium"),
    "centre": ("in the centre", "in the center", "in the middle", "at the centre"),
    "left": ("on the left", "on the left", "on the left side", "at the left"),
    "right": ("on the right", "on the right", "on the right side", "at the right"),
    "top": ("at the top", "at the top", "on top", "near the top"),
    "bottom": ("at the bottom", "at the bottom", "on the bottom", "near the bottom"),
}
CORNERS = ("in the {} corner", "in the {} corner", "at the {}", "in the {}")
OPENINGS = ("", "", "", "", "", "a picture of ", "a drawing of ", "draw ", "there is ", "please draw ", "show me ")
GROUND_WORDS = (
    "on a {} background",
    "on a {} background",
    "on a {} background",
    "against a {} background",
    "over a {} background",
    "in front of a {} background",
    "with a {} background",
    "on {}",
)
SPLIT_WORDS = {
    "sides": (
        "that is {} on the left and {} on the right",
        "half {} and half {}",
        "with a {} left half and a {} right half",
    ),
    "halves": (
        "that is {} above and {} below",
        "that is {} at the top and {} at the bottom",
        "with a {} upper half and a {} lower half",
    ),
}
HELD_OUT = 16  # of 256: the share of sentences kept for the evaluation


def is_held_out(sentence: str) -> bool:
    plain = sentence.lower().strip(" .")
    return hashlib.sha256(plain.encode()).digest()[0] < HELD_OUT


def with_articles(sentence: str) -> str:
    words = sentence.split()
    for i, word in enumerate(words[:-1]):
        if word == "a" and words[i + 1] == "orange":
            words[i] = "an"
    return " ".join(words)


def say(rng: random.Random, word: str) -> str:
    return rng.choice(SAID.get(word, (word,)))


def say_place(rng: random.Random, place: str) -> str:
    if " " not in place:
        return say(rng, place)
    if rng.random() < 0.2:
        place = place.replace("top", "upper").replace("bottom", "lower")
    return rng.choice(CORNERS).format(place)


def say_item(rng: random.Random, item: Item) -> str:
    return " ".join(("a", say(rng, item.size), item.colour, say(rng, item.shape)))


def say_ground(rng: random.Random, scene: Scene) -> str:
    """A white ground and nothing else may go unsaid."""
    if scene.split != "plain":
        return "on a background " + rng.choice(SPLIT_WORDS[scene.split]).format(*scene.ground)
    if scene.ground == ("white",) and rng.random() < 0.4:
        return ""
    return rng.choice(GROUND_WORDS).format(*scene.ground)


def say_items(rng: random.Random, items: tuple[Item, ...]) -> str:
    """One shape in the centre, and two side by side, need no place."""
    places = tuple(item.place for item in items)
    silent = places in {("centre",), ("left", "right")} and rng.random() < 0.6
    said = [say_item(rng, item) + ("" if silent else " " + say_place(rng, item.place)) for item in items]
    return " and ".join(said)


def sentence(rng: random.Random, scene: Scene) -> str:
    things, ground = say_items(rng, scene.items), say_ground(rng, scene)
    opening = rng.choice(OPENINGS) if len(scene.items) == 1 else ""
    if len(scene.items) == 1 and scene.split == "plain" and rng.random() < 0.12:
        item, colour = scene.items[0], scene.ground[0]
        where = "centre" if item.place == "centre" else item.place
        return with_articles(f"{opening}{say_item(rng, item)} {say_place(rng, where)} of a {colour} background")
    if ground and not opening and rng.random() < 0.15:
        return with_articles(f"{ground}, {things}")
    return with_articles(f"{opening}{things} {ground}")


def seen_sentence(rng: random.Random, scene: Scene, held_out: bool = False) -> str:
    """A sentence for the scene from training's share of them, or from the evaluation's."""
    return next(text for text in iter(lambda: sentence(rng, scene), None) if is_held_out(text) == held_out)
