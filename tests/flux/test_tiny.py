"""The tiny model that ships with the farm: its files, and that it really draws and edits."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import actors
from actors.flux.render import Renderer, RenderJob
from tests.flux.small import stages
from training.checker import NAMES, colour_index, judge, see
from training.evaluate import RESULT, fingerprint, renderer
from training.shapes import Item, Pixels, Scene, draw

MODELS = Path(actors.__file__).parent / "tiny" / "models"
FILES = ("diffusion_models/tiny-flux", "vae/ae", "text_encoders/clip_l", "text_encoders/t5xxl")


@pytest.fixture(scope="module")
def machine() -> Renderer:
    return renderer(MODELS)


def drawn(machine: Renderer, prompt: str, seed: int = 1, reference: Pixels | None = None) -> Pixels:
    picture = None if reference is None else Image.fromarray(reference)
    return np.asarray(machine.render([RenderJob(prompt, seed, 128, 128, 8, 2.5, picture)])[0])


def shares(picture: Pixels) -> Counter[str]:
    """Per cent of the picture in each colour."""
    index = colour_index(picture)
    return Counter({name: round(100 * float((index == number).mean())) for number, name in enumerate(NAMES)})


def circle(colour: str, ground: str) -> Scene:
    return Scene(128, 128, "plain", (ground,), (Item("circle", colour, "medium", "centre", 64, 64, 56),))


def test_the_files_are_bfloat16_and_fit_into_the_package() -> None:
    total = sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file())
    assert total < 40_000_000
    for name in FILES:
        with safe_open(MODELS / f"{name}.safetensors", framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}, name
        assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()), name
        assert all(bool(tensor.any()) for tensor in tensors.values() if tensor.ndim > 1), name


def test_the_kept_table_is_of_these_very_weights() -> None:
    assert json.loads(RESULT.read_text())["weights_sha256"] == fingerprint(MODELS)


def test_the_config_says_what_the_tensors_have(machine: Renderer) -> None:
    config = json.loads((MODELS / "config.json").read_text())
    assert config["flux"]["guidance_embed"] is True
    assert config["vae"]["z_channels"] == 16
    encoder, denoiser, _ = stages(machine)
    assert encoder.vae.config.compression == 8
    assert encoder.vae.config.scale_factor == config["vae"]["scale_factor"]
    assert 2_000_000 < sum(p.numel() for p in denoiser.flux.parameters()) < 12_000_000


@pytest.mark.parametrize(("colour", "ground"), [("red", "blue"), ("green", "yellow"), ("white", "black")])
def test_a_picture_shows_the_colours_that_its_sentence_names(machine: Renderer, colour: str, ground: str) -> None:
    picture = drawn(machine, f"a {colour} circle on a {ground} background")
    assert picture.shape == (128, 128, 3)
    share = shares(picture)
    assert share[ground] > 55, share
    assert 6 < share[colour] < 30, share
    assert sum(share.values()) - share[ground] - share[colour] < 10, share
    assert shares(picture[48:80, 48:80])[colour] > 60


def test_most_pictures_are_right_in_the_checkers_eyes(machine: Renderer) -> None:
    pairs = [
        ("red", "blue"),
        ("yellow", "purple"),
        ("black", "white"),
        ("orange", "green"),
        ("blue", "red"),
        ("white", "orange"),
    ]
    jobs = [RenderJob(f"a {c} circle on a {g} background", n, 128, 128, 8, 2.5) for n, (c, g) in enumerate(pairs)]
    verdicts = [judge(circle(*pair), picture) for pair, picture in zip(pairs, machine.render(jobs), strict=True)]
    assert sum(verdict["colours"] for verdict in verdicts) >= 5, verdicts
    assert sum(verdict["place"] for verdict in verdicts) >= 5, verdicts


def test_an_edit_changes_the_colour_and_keeps_the_background(machine: Renderer) -> None:
    before = draw(circle("red", "blue"))
    share = shares(drawn(machine, "make the circle green", reference=before))
    assert share["green"] > 6, share
    assert share["red"] < 4, share
    assert abs(share["blue"] - shares(before)["blue"]) < 10


def test_the_autoencoder_gives_back_what_it_took(machine: Renderer) -> None:
    vae = stages(machine)[0].vae
    for ground in ("white", "black", "red"):
        before = draw(circle("yellow", ground))
        rgb = torch.from_numpy(before).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            latent = vae.encode(rgb)
            after = ((vae.decode(latent) + 1) * 127.5).clamp(0, 255)[0].permute(1, 2, 0).numpy()
        assert latent.shape == (1, 16, 16, 16)
        assert np.abs(after - before).mean() < 4
        assert see(after.round().astype(np.uint8)).items[0].shape == "circle"


def test_another_seed_is_another_picture_and_the_same_seed_the_same(machine: Renderer) -> None:
    sentence = "a red star on a white background"
    first, again, other = (drawn(machine, sentence, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_previews_come_to_resemble_the_picture(machine: Renderer) -> None:
    seen: list[Pixels] = []
    job = RenderJob("a red circle on a blue background", 1, 128, 128, 8, 2.5)
    (picture,) = machine.render([job], lambda _step, _total, preview: seen.append(preview.pictures()[0]))
    small = np.asarray(Image.fromarray(picture).resize((16, 16), Image.Resampling.BOX)).astype(int)
    apart = [np.abs(preview.astype(int) - small).mean() for preview in seen]
    assert len(apart) == 8
    assert apart[-1] < apart[0]
    assert apart[-1] < 30
