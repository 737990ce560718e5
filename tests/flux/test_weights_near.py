"""What the names and documents near weights say of them, and whom they are believed."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from actors import models
from actors.flux import containers
from actors.flux.check import check
from actors.flux.checkpoint import stored_part
from actors.flux.config import FLUX1_DEV
from actors.flux.shapes import expected
from actors.flux.weights import load_vae
from tests.flux import containers_kit as kit
from tests.flux.samples import VAE_WEIGHTS, comfyui


@pytest.mark.parametrize(
    ("path", "pipeline", "model"),
    [
        ("models--FLUX.1-Kontext-dev/snapshots/ab12", '{"_class_name": "FluxKontextPipeline"}', "FLUX.1 Kontext dev"),
        ("kontext-work/snapshots/ab12", '{"_class_name": "FluxPipeline"}', "FLUX.1 dev"),
        ("kontext-work", "{", "FLUX.1 dev"),
    ],
)
def test_a_diffusers_folder_says_itself_whether_it_is_kontext(
    tmp_path: Path, path: str, pipeline: str, model: str
) -> None:
    folder = tmp_path / path
    kit.write_sparse(folder / "transformer" / "diffusion_pytorch_model.safetensors", expected(FLUX1_DEV), "BF16")
    (folder / "model_index.json").write_text(pipeline)
    assert check(folder).model == model
    assert check(folder / "transformer").model == model


def test_a_folder_of_that_name_makes_no_kontext(tmp_path: Path) -> None:
    folder = tmp_path / "kontext-work" / "diffusion_models"
    kit.write_sparse(folder / "flux1-dev.safetensors", expected(FLUX1_DEV), "BF16")
    assert check(folder.parent).model == "FLUX.1 dev"


SDXL = {"_class_name": "AutoencoderKL", "scaling_factor": 0.13025, "latent_channels": 4, "norm_num_groups": 4}


def test_a_stray_config_of_another_model_is_not_believed(tmp_path: Path) -> None:
    file = kit.write(tmp_path / "vae" / "ae.safetensors", VAE_WEIGHTS)
    (tmp_path / "vae" / "config.json").write_text(json.dumps(SDXL))
    assert stored_part(file, "vae").hints == {}
    kit.write_config(tmp_path)
    assert stored_part(file, "vae").hints == json.loads(json.dumps(vars(kit.VAE)))
    assert check(file).loads


@pytest.mark.parametrize(("kind", "believed"), [("AutoencoderKL", True), ("AutoencoderKLWan", False), (None, False)])
def test_a_config_beside_the_weights_is_believed_where_it_names_their_part(
    tmp_path: Path, kind: str | None, believed: bool
) -> None:
    file = kit.write(tmp_path / "mine" / "ae.safetensors", VAE_WEIGHTS)
    document = {"_class_name": kind, "architectures": "none", "scaling_factor": 0.5, "norm_num_groups": 4}
    (file.parent / "config.json").write_text(json.dumps(document))
    assert check(file).loads is believed
    if believed:
        assert load_vae(file, None, "cpu", torch.float32).config.scale_factor == 0.5


def test_a_config_that_counts_other_channels_than_its_weights_is_a_problem(tmp_path: Path) -> None:
    file = kit.write(tmp_path / "vae" / "diffusion_pytorch_model.safetensors", VAE_WEIGHTS)
    (tmp_path / "vae" / "config.json").write_text(json.dumps(SDXL))
    report = check(file)
    assert not report.loads
    assert "decoder.conv_in.weight is [16, 16, 3, 3], not [16, 4, 3, 3]" in report.problems[0]
    (tmp_path / "vae" / "config.json").write_text(json.dumps(SDXL | {"latent_channels": 16}))
    assert check(file).loads


def test_links_are_followed_and_no_folder_is_looked_at_twice(tmp_path: Path) -> None:
    real = comfyui(tmp_path / "store" / "models")
    folder = tmp_path / "here"
    for name in ("tokenizers", "text_encoders"):
        shutil.copytree(real / name, folder / name)
    (folder / "vae").mkdir()
    for place in (folder, folder / "vae"):
        shutil.copy(real / "config.json", place)
    (folder / "vae" / "flux").symlink_to(real / "vae")
    (folder / "diffusion_models").symlink_to(real / "diffusion_models")
    (folder / "unet").symlink_to(folder / "diffusion_models")
    (real / "vae" / "again").symlink_to(real / "vae")
    (real / "vae" / "all").symlink_to(folder)
    (real / "vae" / "gone").symlink_to(tmp_path / "nowhere")
    report = check(folder)
    assert report.complete
    assert len(report.parts) == 4


def test_a_link_into_a_sea_of_files_is_told_not_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = comfyui(tmp_path / "models")
    monkeypatch.setattr(containers, "MOST_ENTRIES", 40)
    assert check(folder).complete
    (tmp_path / "sea").mkdir()
    for number in range(40):
        (tmp_path / "sea" / str(number)).touch()
    (folder / "loras").symlink_to(tmp_path / "sea")
    assert "more than 40 files" in check(folder).problems[0]
    assert not any(row["ready"] for row in models.models_table(folder) if row["name"] != "tiny")
