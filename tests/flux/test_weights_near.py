"""What the names and documents near weights say of them, and whom they are believed."""

from pathlib import Path

import pytest

from actors.flux.check import check
from actors.flux.config import FLUX1_DEV
from actors.flux.shapes import expected
from tests.flux import containers_kit as kit


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
