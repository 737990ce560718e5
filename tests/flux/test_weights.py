"""One set of random weights in every container gives the same networks."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from actors.flux.weights import load_flux, load_text, load_vae
from tests.flux import containers_kit as kit
from tests.flux.samples import (
    CLIP_WEIGHTS,
    CPU,
    F32,
    FLUX_WEIGHTS,
    T5_WEIGHTS,
    VAE_WEIGHTS,
    all_in_one,
    bfl_file,
    bfl_file_saved_by_comfyui,
    bfl_folder,
    comfyui,
    comfyui_installation,
    diffusers,
    prefixed,
    prefixed_in_diffusers,
    reference,
    same,
    velocity,
)

CONTAINERS = [
    *(bfl_file, bfl_file_saved_by_comfyui, prefixed, prefixed_in_diffusers),
    *(bfl_folder, comfyui, comfyui_installation, all_in_one, diffusers),
]
WHOLE = [comfyui, comfyui_installation, all_in_one, diffusers]


@pytest.mark.parametrize("write", CONTAINERS)
def test_a_transformer_is_the_same_from_every_container(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    model = load_flux(write(tmp_path), None, CPU, F32)
    assert model.config == kit.FLUX
    assert same(model, FLUX_WEIGHTS)
    assert torch.equal(velocity(model), velocity(reference()))
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("write", [bfl_folder, *WHOLE])
def test_an_autoencoder_is_the_same_from_every_container(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    model = load_vae(write(tmp_path), None, CPU, F32)
    assert model.config == kit.VAE
    assert same(model, VAE_WEIGHTS)
    rgb = model.decode(torch.randn(1, 16, 2, 3, generator=torch.Generator().manual_seed(0)))
    assert rgb.shape == (1, 3, 16, 24)


@pytest.mark.parametrize("write", WHOLE)
def test_text_encoders_are_the_same_from_every_container(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    text = load_text(write(tmp_path), CPU, F32)
    assert same(text.t5, T5_WEIGHTS)
    assert same(text.clip, CLIP_WEIGHTS)
    txt_BTD, pooled_BV = text(["w5 w7", "w9"], 6)
    assert txt_BTD.shape == (2, 6, 24)
    assert pooled_BV.shape == (2, 16)
    assert torch.isfinite(txt_BTD).all()
    assert (txt_BTD[0] != txt_BTD[1]).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_and_targets(tmp_path: Path, dtype: torch.dtype) -> None:
    halves = {name: tensor.to(dtype) for name, tensor in FLUX_WEIGHTS.items()}
    path = kit.write(tmp_path / "flux.safetensors", halves)
    assert same(load_flux(path, kit.FLUX, CPU, dtype), halves)
    assert same(load_flux(path, kit.FLUX, CPU, F32), {name: tensor.float() for name, tensor in halves.items()})


@pytest.mark.parametrize("convention", ["old", "new", "metadata", "rows", *kit.DECLARED[1:]])
def test_fp8_scaled_transformers_are_their_dequantised_weights(tmp_path: Path, convention: str) -> None:
    stored, meant, metadata = kit.quantised(FLUX_WEIGHTS, convention)
    path = kit.write(tmp_path / "flux_fp8_scaled.safetensors", stored, metadata)
    model = load_flux(path, kit.FLUX, CPU, F32)
    assert same(model, meant)
    want = reference()
    want.load_state_dict(meant)
    assert torch.equal(velocity(model), velocity(want))
    assert not torch.equal(velocity(model), velocity(reference())), "eight bits must have cost something"


@pytest.mark.parametrize("convention", ["old", "new", "metadata"])
def test_fp8_scaled_t5_is_its_dequantised_weights(tmp_path: Path, convention: str) -> None:
    comfyui(tmp_path)
    stored, meant, metadata = kit.quantised(T5_WEIGHTS, convention)
    (tmp_path / "text_encoders" / "t5xxl_fp16.safetensors").unlink()
    kit.write(tmp_path / "text_encoders" / "t5xxl_fp8_e4m3fn_scaled.safetensors", stored, metadata)
    assert same(load_text(tmp_path, CPU, F32).t5, meant)


def test_fp8_without_scales_is_the_rounded_weights(tmp_path: Path) -> None:
    rounded = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in FLUX_WEIGHTS.items()}
    path = kit.write(tmp_path / "flux-fp8.safetensors", rounded)
    assert same(load_flux(path, kit.FLUX, CPU, F32), {name: tensor.float() for name, tensor in rounded.items()})


@pytest.mark.parametrize("dtype", [F32, torch.bfloat16, torch.float16])
def test_a_layer_left_in_more_bits_is_multiplied_by_its_scale_too(tmp_path: Path, dtype: torch.dtype) -> None:
    stored, meant, _ = kit.quantised(FLUX_WEIGHTS, "old")
    stored["img_in.weight"] = FLUX_WEIGHTS["img_in.weight"].to(dtype)
    stored["img_in.scale_weight"] = torch.tensor(0.5)
    path = kit.write(tmp_path / "flux_fp8_scaled.safetensors", stored)
    assert same(load_flux(path, kit.FLUX, CPU, F32), meant | {"img_in.weight": stored["img_in.weight"].float() * 0.5})


def test_of_two_t5_the_more_precise_is_taken_unless_one_is_named(tmp_path: Path) -> None:
    comfyui(tmp_path)
    stored, meant, metadata = kit.quantised(T5_WEIGHTS, "new")
    eight = kit.write(tmp_path / "text_encoders" / "a_t5xxl_fp8_scaled.safetensors", stored, metadata)
    assert same(load_text(tmp_path, CPU, F32).t5, T5_WEIGHTS)
    assert same(load_text(tmp_path, CPU, F32, t5=eight).t5, meant)


def test_t5_in_float16_keeps_its_widest_projection_in_float32(tmp_path: Path) -> None:
    text = load_text(comfyui(tmp_path), CPU, torch.float16)
    kinds = {name: parameter.dtype for name, parameter in text.t5.named_parameters()}
    assert {dtype for name, dtype in kinds.items() if ".wo." in name} == {torch.float32}
    assert {dtype for name, dtype in kinds.items() if ".wo." not in name} == {torch.float16}
    assert torch.isfinite(text(["w5"], 4)[0]).all()
