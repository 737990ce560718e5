"""The drawn domain: scenes, sentences, edits and the checker that looks only at pixels."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.cards import TINY
from training.checker import components, judge, judge_edit, see, see_shape
from training.edits import KINDS, free_colours, invent_edit, name, signature
from training.shapes import CANVASES, COLOURS, PLACES, SHAPES, SIZES, Item, Scene, draw, invent, put, stencil
from training.words import is_held_out, seen_sentence, sentence

SEEDS = st.integers(0, 2**32)


def one(
    shape: str = "circle", colour: str = "red", ground: str = "blue", place: str = "centre", size: str = "medium"
) -> Scene:
    return Scene(128, 128, "plain", (ground,), (put((128, 128), shape, colour, size, place),))


@given(SEEDS)
@settings(max_examples=60)
def test_the_checker_finds_every_drawn_scene_right(seed: int) -> None:
    scene = invent(random.Random(seed))
    assert all(judge(scene, draw(scene)).values()), scene


@given(SEEDS, st.sampled_from(list(KINDS)))
@settings(max_examples=60)
def test_the_checker_finds_every_drawn_edit_made_and_the_rest_kept(seed: int, kind: str) -> None:
    edit = invent_edit(random.Random(seed), kind)
    before, after = draw(edit.before), draw(edit.after)
    assert judge_edit(edit, before, after) == {"made": True, "kept": True}, edit
    assert not judge_edit(edit, before, before)["made"], edit


def test_an_aspect_ratio_asks_for_a_size_that_was_learnt() -> None:
    assert set(TINY.sizes) <= set(CANVASES)


@given(SEEDS)
@settings(max_examples=200)
def test_scenes_are_what_the_model_can_draw(seed: int) -> None:
    scene = invent(random.Random(seed))
    assert (scene.width, scene.height) in CANVASES
    assert 96 <= min(scene.width, scene.height) <= max(scene.width, scene.height) <= 192
    assert all(item.colour not in scene.ground for item in scene.items)
    for item in scene.items:
        left, top, right, bottom = item.box()
        assert left >= 0 <= top, item
        assert right <= scene.width, item
        assert bottom <= scene.height, item
    if len(scene.items) == 2:
        assert not scene.items[0].touches(scene.items[1], 1)


@given(SEEDS)
@settings(max_examples=200)
def test_a_sentence_names_what_the_scene_shows(seed: int) -> None:
    rng = random.Random(seed)
    scene = invent(rng)
    words = sentence(rng, scene)
    for item in scene.items:
        assert item.colour in words
    if scene.ground != ("white",):
        assert all(colour in words for colour in scene.ground)
    assert "a orange" not in words
    assert "  " not in words
    assert len(words.split()) <= 28


@given(SEEDS, st.booleans())
@settings(max_examples=100)
def test_training_and_evaluation_share_no_sentence(seed: int, held_out: bool) -> None:
    rng = random.Random(seed)
    assert is_held_out(seen_sentence(rng, invent(rng), held_out)) == held_out
    assert is_held_out(signature(invent_edit(rng, "recolour", held_out=held_out))) == held_out


def test_capitals_and_full_stops_make_no_new_sentence() -> None:
    words = [sentence(random.Random(n), invent(random.Random(n))) for n in range(50)]
    assert [is_held_out(w) for w in words] == [is_held_out(w.capitalize() + ".") for w in words]
    assert any(map(is_held_out, words)) is not all(map(is_held_out, words))


@given(SEEDS, st.sampled_from(list(KINDS)))
@settings(max_examples=150)
def test_an_edit_changes_one_thing(seed: int, kind: str) -> None:
    edit = invent_edit(random.Random(seed), kind)
    before, after = edit.before, edit.after
    assert (before.width, before.height) == (after.width, after.height)
    if kind == "background":
        assert before.items == after.items
        assert after.ground != before.ground
        return
    assert (before.split, before.ground) == (after.split, after.ground)
    assert len(after.items) - len(before.items) == {"add": 1, "remove": -1}.get(kind, 0)
    same = set(before.items) & set(after.items)
    assert len(same) == min(len(before.items), len(after.items)) - (kind in {"recolour", "shape", "move"})


def test_an_item_that_has_a_twin_shape_is_named_by_its_colour() -> None:
    items = tuple(
        Item("circle", colour, "small", place, x, 64, 30)
        for colour, place, x in (("red", "left", 30.0), ("blue", "right", 98.0))
    )
    scene = Scene(128, 128, "plain", ("white",), items)
    assert {name(random.Random(n), scene, 1).split()[1] for n in range(30)} == {"blue"}
    assert not {"red", "blue", "white"} & set(free_colours(scene))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
def test_each_shape_is_told_from_the_others_at_every_size(shape: str, size: str) -> None:
    width = 96 * SIZES[size]
    for x, y in ((48.0, 48.0), (48.4, 47.7), (47.5, 48.5)):
        assert see_shape(stencil(shape, width, x, y, (96, 96)) > 127) == shape


@pytest.mark.parametrize("place", PLACES)
def test_each_place_is_seen(place: str) -> None:
    assert see(draw(one(place=place, size="small"))).items[0].place == place


WRONG = {
    "colours": (one(colour="green"), one(ground="yellow")),
    "ground": (one(ground="yellow"), replace(one(), split="sides", ground=("blue", "white"))),
    "shape": tuple(one(shape=shape) for shape in SHAPES if shape != "circle"),
    "size": tuple(one(size=size) for size in SIZES if size != "medium"),
    "place": tuple(one(place=place) for place in PLACES if place != "centre"),
    "count": (
        replace(one(), items=()),
        replace(one(), items=(*one().items, Item("star", "white", "small", "top left", 20, 20, 30))),
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_the_checker_sees_each_kind_of_mistake(what: str) -> None:
    for wrong in WRONG[what]:
        assert not judge(one(), draw(wrong))[what], wrong


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_constant_picture_and_noise_show_nothing(level: int) -> None:
    verdict = judge(one(), np.full((128, 128, 3), level, np.uint8))
    assert not any(verdict.values())
    noise = np.random.default_rng(1).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    assert not judge(one(), noise)["shape"]
    assert not judge(one(), noise)["colours"]


def test_a_blob_is_no_shape() -> None:
    rng = np.random.default_rng(2)
    blob = draw(one(ground="white"))
    blob[44:84, 44:84][rng.random((40, 40)) < 0.5] = COLOURS["white"]
    assert not judge(one(ground="white"), blob)["shape"]


def test_a_background_that_drifts_is_not_kept() -> None:
    edit = invent_edit(random.Random(4), "recolour")
    before, after = draw(edit.before), draw(edit.after)
    drifted = np.clip(after.astype(int) + np.where(after > 128, -12, 12), 0, 255).astype(np.uint8)
    assert not judge_edit(edit, before, drifted)["kept"]


def test_components_hang_together_across_corners_and_not_across_gaps() -> None:
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0]], bool)
    assert sorted(int(part.sum()) for part in components(mask)) == [2, 2, 3]


def test_the_palette_is_told_apart() -> None:
    colours = np.array(list(COLOURS.values()), float)
    gaps = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    assert gaps[~np.eye(len(colours), dtype=bool)].min() > 80
