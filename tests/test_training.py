"""What training rests on: layouts that lie as latents do, an autoencoder whose latents are even, workers that meet."""

import random
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from actors.flux import latents
from actors.flux.vae import AutoEncoder
from training import train, vae
from training.edits import KINDS, invent_edit
from training.encoders import LENGTHS, build, embed
from training.flux import Learner, Meeting, flat, keep, restore, spread, times
from training.pool import CELL, layout
from training.shapes import COLOURS, Scene, draw, invent, put
from training.tokens import T5_LENGTH
from training.words import seen_sentence


def test_a_layout_names_the_colour_of_each_cell_in_the_order_of_the_packed_latents() -> None:
    item = put((128, 96), "square", "red", "medium", "top right")
    picture = draw(Scene(128, 96, "sides", ("blue", "yellow"), (item,)))
    # The same colours laid out by the packing that the transformer sees: one latent channel, 4x4 of them to a token.
    palette = np.array(list(COLOURS.values()), np.float32)
    cells = picture[CELL // 2 :: CELL, CELL // 2 :: CELL].astype(np.float32)
    nearest = np.sqrt(((cells[:, :, None] - palette) ** 2).sum(-1)).argmin(-1)
    side = 16 // CELL
    halves = (
        torch.from_numpy(nearest).reshape(96 // 16, side, 128 // 16, side).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    )
    assert torch.equal(layout(picture).long(), halves)
    ids = latents.image_ids(torch.zeros(1, 16, 96 // 8, 128 // 8))[0]
    top_right = int(((ids[:, 1] == 1) & (ids[:, 2] == 6)).nonzero())
    assert {list(COLOURS)[number] for number in layout(picture)[top_right].tolist()} == {"red"}


def test_settled_latents_have_mean_0_and_deviation_1() -> None:
    torch.manual_seed(1)
    autoencoder = AutoEncoder(vae.CONFIG)
    vae.settle(autoencoder, pictures=3)
    rng = random.Random(9)
    with torch.no_grad():
        shapes = [vae.pixels(rng, canvas, 3) for canvas in ((96, 96), (128, 128), (192, 128))]
        z_CN = torch.cat([autoencoder.encode(rgb).transpose(0, 1).flatten(1) for rgb in shapes], dim=1)
    assert (z_CN.std(1) - 1).abs().max() < 0.25
    assert z_CN.mean(1).abs().max() < 0.25


def test_edges_are_where_colours_meet_and_nowhere_else() -> None:
    rgb = torch.full((1, 3, 32, 32), -1.0)
    rgb[..., 16:] = 1.0
    marked = vae.edges(rgb)[0, 0]
    assert marked[:, 14:18].all()
    assert marked.sum() == 4 * 32


def test_times_stay_inside_and_often_near_noise() -> None:
    torch.manual_seed(1)
    drawn = times(4000, 64)
    assert drawn.min() > 0
    assert drawn.max() < 1
    assert 0.6 < (drawn > 0.75).float().mean() < 0.8


def test_workers_that_meet_add_up_what_each_of_them_learnt() -> None:
    learner = torch.nn.Linear(3, 2)
    start = flat(learner)
    meeting = Meeting(learner)
    for step in (1.0, 10.0):  # two workers that set out from the same weights
        spread(start + step, learner)
        after = meeting.visit(learner, start)
    torch.testing.assert_close(after, start + 0.75 * 11)
    assert (meeting.mean > start).all()
    assert (meeting.mean <= after).all()


def test_a_finished_model_can_be_gone_on_from_and_finished_again(tmp_path: Path) -> None:
    train.unpack(train.MODELS, tmp_path)
    learner = Learner(train.load_text(tmp_path))
    restore(learner, tmp_path / "flux.safetensors")
    keep(learner, Meeting(learner), tmp_path)
    train.pack(tmp_path, tmp_path / "models")
    for path in train.MODELS.rglob("*.safetensors"):
        ours, again = load_file(path), load_file(tmp_path / "models" / path.relative_to(train.MODELS))
        assert ours.keys() == again.keys()
        assert all(torch.equal(tensor, again[name]) for name, tensor in ours.items()), path.name


def test_an_untrained_t5_already_tells_whose_colour_is_whose() -> None:
    torch.manual_seed(0)
    text = build(train.MODELS / "tokenizers")
    with torch.no_grad():
        one, other = embed(text, ["a red circle on a blue background", "a blue circle on a red background"])[0]
    red, blue = 1, 5  # "a" and "red" are its first two words
    assert (one[red] - other[blue]).norm() > 0.1 * one[red].norm()
    assert (one[blue] - other[red]).norm() > 0.1 * one[blue].norm()


def test_no_sentence_of_the_domain_is_cut_where_training_cuts() -> None:
    text, rng = build(train.MODELS / "tokenizers"), random.Random(6)
    sentences = [seen_sentence(rng, invent(rng, 2)) for _ in range(300)]
    sentences += [invent_edit(rng, kind).sentence for kind in KINDS for _ in range(30)]
    ids = text.tokens(text.t5_tokenizer, text.t5, sentences, T5_LENGTH)
    assert not ids[:, min(LENGTHS) :].any()  # nothing but padding
