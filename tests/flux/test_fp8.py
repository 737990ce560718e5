"""Weights that stay in fp8 give, bit for bit, what they give widened while they are read (ranks: test_sharding.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from actors.flux import checkpoint as checkpoint_module
from actors.flux.checkpoint import open_checkpoint, stored_part
from actors.flux.fp8 import Linear
from actors.flux.model import Flux, compile_blocks
from actors.flux.offload import stream_blocks
from actors.flux.quant import fp8_of
from actors.flux.shapes import Sizes, Slice, expected, is_linear
from actors.flux.vae import AutoEncoder
from actors.flux.weights import load_flux, load_t5, load_text
from tests.flux import containers_kit as kit
from tests.flux.samples import CPU, F32, FLUX_WEIGHTS, T5_WEIGHTS, bfl_file, comfyui, diffusers, velocity

BF16, F16 = torch.bfloat16, torch.float16
EIGHT = torch.float8_e4m3fn
CONVENTIONS = ("old", "new", "metadata", "rows", "float8_e4m3fn_rowwise")
LINEARS = {name for name, tensor in FLUX_WEIGHTS.items() if tensor.ndim == 2}


def test_fp8_stays_where_nothing_wider_is_asked_for_and_widening_is_quick() -> None:
    asked = ("auto", "fp8", "bfloat16", "float16", "float32")
    assert [fp8_of(precision, "cuda:1") for precision in asked] == ["stored", "always", "never", "never", "never"]
    assert [fp8_of(precision, "cpu") for precision in asked] == ["never", "always", "never", "never", "never"]


def test_the_tables_know_which_weights_belong_to_linears() -> None:
    with torch.device("meta"):
        networks: dict[Sizes, nn.Module] = {
            kit.FLUX: Flux(kit.FLUX),
            kit.VAE: AutoEncoder(kit.VAE),
            kit.T5: T5EncoderModel(T5Config(**vars(kit.T5), feed_forward_proj="gated-gelu")),
            kit.CLIP: CLIPTextModel(CLIPTextConfig(**vars(kit.CLIP))),
        }
    for sizes, network in networks.items():
        linears = {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, nn.Linear)}
        assert {name for name, shape in expected(sizes).items() if is_linear(name, shape)} == linears


def fp8_file(folder: Path, convention: str = "old") -> Path:
    stored, _, metadata = kit.quantised(FLUX_WEIGHTS, convention)
    return kit.write(folder / "flux_fp8_scaled.safetensors", stored, metadata)


def in_fp8(network: nn.Module) -> set[str]:
    return {f"{name}.weight" for name, one in network.named_modules() if isinstance(one, Linear) and one.weight is None}


def nbytes(network: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in network.parameters())


@torch.no_grad()
def drawn(model: Flux, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    img, txt, y = (torch.randn(shape, generator=generator).to(dtype) for shape in ((2, 6, 64), (2, 4, 24), (2, 16)))
    ids = torch.arange(18.0).view(1, 6, 3).expand(2, 6, 3)
    out: Tensor = model(img, ids, txt, torch.zeros(2, 4, 3), torch.tensor([0.3, 0.9]), y, torch.tensor([3.5, 1.0]))
    return out


@pytest.mark.parametrize(
    ("convention", "dtype"), [("old", F32), ("old", F16), *((convention, BF16) for convention in CONVENTIONS)]
)
def test_a_transformer_that_keeps_fp8_computes_what_a_widened_one_does(
    tmp_path: Path, convention: str, dtype: torch.dtype
) -> None:
    path = fp8_file(tmp_path, convention)
    wide = load_flux(path, kit.FLUX, CPU, dtype)
    model = load_flux(path, kit.FLUX, CPU, dtype, fp8="stored")
    assert torch.equal(drawn(model, dtype), drawn(wide, dtype))
    assert drawn(model, dtype).isfinite().all()
    assert in_fp8(model) == LINEARS
    assert in_fp8(wide) == set()
    elements = sum(FLUX_WEIGHTS[name].numel() for name in LINEARS)
    rows = sum(len(FLUX_WEIGHTS[name]) for name in LINEARS)
    assert nbytes(wide) - nbytes(model) == elements * (dtype.itemsize - 1) - 4 * rows
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(("convention", "dtype"), [("old", F32), ("new", BF16), ("rows", F16)])
def test_text_encoders_that_keep_fp8_do_too(tmp_path: Path, convention: str, dtype: torch.dtype) -> None:
    comfyui(tmp_path)
    for name, part in (("t5xxl_fp16", "t5"), ("clip_l", "clip")):
        path = tmp_path / "text_encoders" / f"{name}.safetensors"
        stored, _, metadata = kit.quantised(kit.random_tensors(getattr(kit, part.upper()), seed=5), convention)
        kit.write(path, stored, metadata)
    wide, kept = (load_text(tmp_path, CPU, dtype, fp8=fp8) for fp8 in ("never", "stored"))
    assert len(in_fp8(kept.t5)) == 7 * kit.T5.num_layers
    assert len(in_fp8(kept.clip)) >= 6 * kit.CLIP.num_hidden_layers
    with torch.no_grad():
        for one, other in zip(wide(["w5 w7", "w9"], 6), kept(["w5 w7", "w9"], 6), strict=True):
            assert one.isfinite().all()
            assert torch.equal(one, other)


def test_fp8_without_scales_and_layers_with_more_bits_are_kept_as_they_are(tmp_path: Path) -> None:
    stored = {name: tensor.to(EIGHT) if tensor.ndim == 2 else tensor for name, tensor in FLUX_WEIGHTS.items()}
    stored["img_in.weight"] = FLUX_WEIGHTS["img_in.weight"].to(BF16)
    path = kit.write(tmp_path / "flux-fp8.safetensors", stored)
    model = load_flux(path, kit.FLUX, CPU, BF16, fp8="stored")
    assert in_fp8(model) == LINEARS - {"img_in.weight"}
    assert torch.equal(drawn(model, BF16), drawn(load_flux(path, kit.FLUX, CPU, BF16), BF16))


def test_pieces_of_a_fused_weight_keep_each_its_scale(tmp_path: Path) -> None:
    """Under diffusers' names q, k, v and the mlp lie apart, and the last modulation the other way round."""
    apart = kit.flux_in_diffusers(FLUX_WEIGHTS)
    stored, _, _ = kit.quantised(apart, "old")
    del stored["transformer_blocks.0.attn.to_k.scale_weight"]
    stored["transformer_blocks.1.attn.to_v.weight"] = apart["transformer_blocks.1.attn.to_v.weight"]
    path = kit.write(tmp_path / "flux.safetensors", stored)
    model = load_flux(path, kit.FLUX, CPU, F32, fp8="stored")
    assert in_fp8(model) == LINEARS - {"double_blocks.1.img_attn.qkv.weight"}
    assert torch.equal(velocity(model), velocity(load_flux(path, kit.FLUX, CPU, F32)))


def test_blocks_stream_in_fp8(tmp_path: Path) -> None:
    path = fp8_file(tmp_path)
    wide, model = load_flux(path, kit.FLUX, CPU, BF16), load_flux(path, kit.FLUX, CPU, BF16, fp8="stored")
    resident = drawn(wide, BF16)
    streams = [stream_blocks(one, (one.double_blocks, one.single_blocks), CPU) for one in (wide, model)]
    moved = [max(block.host.numel() for block in stream.blocks) for stream in streams]
    assert moved[1] < 0.75 * moved[0]
    for _ in range(2):
        assert torch.equal(drawn(model, BF16), resident)


def test_blocks_that_keep_fp8_compile(tmp_path: Path) -> None:
    model = load_flux(fp8_file(tmp_path), kit.FLUX, CPU, F32, fp8="stored")
    eager = velocity(model)
    compile_blocks(model, backend="aot_eager")
    assert torch.equal(velocity(model), eager)


@pytest.mark.parametrize("window", [1, 200, 2**20])
def test_weights_of_more_bits_are_rounded_row_by_row_when_asked(
    tmp_path: Path, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_module, "WINDOW", window)
    checkpoint = open_checkpoint(bfl_file(tmp_path / "a"))
    elsewhere = open_checkpoint(stored_part(diffusers(tmp_path / "b"), "transformer"))
    for name in ("double_blocks.1.img_attn.qkv.weight", "single_blocks.0.linear2.weight"):
        whole = FLUX_WEIGHTS[name]
        stored, scale = checkpoint.read_fp8(name, CPU)
        assert stored.dtype == EIGHT
        # Three bits behind the leading one, as far as 6 bits of exponent below the row's largest reach.
        error = (stored.float() * scale - whole).abs()
        assert (error <= torch.maximum(whole.abs() / 16, scale * 2**-10)).all()
        assert (error > 0).any()
        again, factors = elsewhere.read_fp8(name, CPU)
        assert torch.equal(again.float() * factors, stored.float() * scale)
        for cuts in ([Slice(0, 8, 8), Slice(0, 20, 4)], [Slice(1, 3, 8), Slice(1, 20, 4)]):
            share, own = checkpoint.read_fp8(name, CPU, cuts)
            taken = torch.cat([stored.float().narrow(*cut) for cut in cuts], dim=cuts[0].dim)
            factors = torch.cat([scale.narrow(*cut) for cut in cuts]) if cuts[0].dim == 0 else scale
            assert torch.equal(share.float(), taken)
            assert torch.equal(own, factors)


def test_a_model_rounded_to_fp8_is_near_the_whole_one(tmp_path: Path) -> None:
    path = kit.write(tmp_path / "flux.safetensors", FLUX_WEIGHTS | {"img_in.bias": torch.zeros(32)})
    model = load_flux(path, kit.FLUX, CPU, F32, fp8="always")
    blocks = {name for name in LINEARS if name.startswith(("double_blocks.", "single_blocks."))}
    assert in_fp8(model) == blocks
    whole = velocity(load_flux(path, kit.FLUX, CPU, F32))
    assert 0 < (velocity(model) - whole).norm() / whole.norm() < 0.05
    zeros = {name: torch.zeros_like(tensor) for name, tensor in FLUX_WEIGHTS.items()}
    empty = load_flux(kit.write(tmp_path / "zeros.safetensors", zeros), kit.FLUX, CPU, F32, fp8="always")
    assert torch.equal(velocity(empty), torch.zeros_like(whole))


def test_what_is_stored_in_fp8_stays_so_when_all_is_rounded(tmp_path: Path) -> None:
    comfyui(tmp_path)
    stored, _, _ = kit.quantised(T5_WEIGHTS, "old")
    kit.write(tmp_path / "text_encoders" / "t5xxl_fp16.safetensors", stored)
    kept, all_of_them = (load_t5(stored_part(tmp_path, "t5"), CPU, F32, fp8=fp8) for fp8 in ("stored", "always"))
    for one, other in zip(kept.parameters(), all_of_them.parameters(), strict=True):
        assert torch.equal(one.float(), other.float())
