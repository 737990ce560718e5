"""The transformer and the autoencoder against diffusers, in float32 with random weights."""

import dataclasses
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from actors.flux import latents
from actors.flux.blocks import DoubleBlock, SingleBlock
from actors.flux.config import FLUX1_DEV, FLUX1_SCHNELL, FLUX1_VAE, FluxConfig, VaeConfig
from actors.flux.model import Flux, compile_blocks
from actors.flux.rope import rotation, sinusoid
from actors.flux.vae import AutoEncoder, spans
from actors.flux.weights import load_vae
from tests.flux import small
from training.shapes import Item, Scene, draw
from training.train import MODELS


@torch.no_grad()
@pytest.mark.parametrize("guidance", [True, False])
@pytest.mark.parametrize("reference", [True, False])
@pytest.mark.parametrize(("batch", "rows", "columns"), [(1, 4, 4), (3, 3, 6), (3, 12, 5)])
def test_transformer_equals_diffusers(guidance: bool, reference: bool, batch: int, rows: int, columns: int) -> None:
    flux = small.small_flux(guidance)
    call = small.inputs(batch, rows, columns, reference)
    expected = small.peer_flux(flux)(
        hidden_states=call["img_BLC"],
        encoder_hidden_states=call["txt_BTD"],
        pooled_projections=call["y_BV"],
        timestep=call["timesteps_B"],
        img_ids=call["img_ids_BL3"][0],
        txt_ids=call["txt_ids_BT3"][0],
        guidance=call["guidance_B"] if guidance else None,
        return_dict=False,
    )[0]
    assert small.relative_error(flux(**call), expected) <= 1e-5


@torch.no_grad()
def test_every_transformer_tensor_moves_the_output() -> None:
    flux = small.small_flux()
    call = small.inputs(1, 4, 4, True)
    before = flux(**call)
    unmoved = []
    for name, tensor in flux.state_dict().items():
        kept = tensor.clone()
        tensor.zero_()
        if small.relative_error(flux(**call), before) < 1e-3:
            unmoved.append(name)
        tensor.copy_(kept)
    assert unmoved == []


@torch.no_grad()
def test_the_reference_and_its_place_matter() -> None:
    flux, call = small.small_flux(), small.inputs(1, 4, 4, True)
    same_axis = call["img_ids_BL3"].clone()
    same_axis[..., 0] = 0
    alone = {**call, "img_BLC": call["img_BLC"][:, :16], "img_ids_BL3": call["img_ids_BL3"][:, :16]}
    with_reference = flux(**call)[:, :16]
    assert small.relative_error(flux(**alone), with_reference) > 1e-2
    assert small.relative_error(flux(**{**call, "img_ids_BL3": same_axis})[:, :16], with_reference) > 1e-2


def test_the_released_sizes() -> None:
    with torch.device("meta"):
        dev, schnell, vae = Flux(FLUX1_DEV), Flux(FLUX1_SCHNELL), AutoEncoder(FLUX1_VAE)
    counts = [sum(p.numel() for p in model.parameters()) for model in (dev, schnell, vae)]
    assert counts == [11_901_408_320, 11_891_178_560, 83_819_683]
    assert (len(dev.state_dict()), len(vae.state_dict())) == (780, 244)


def test_runs_on_the_meta_device_and_under_autocast() -> None:
    call = small.inputs(1, 4, 4, False)
    with torch.device("meta"):
        nowhere = Flux(small.FLUX)
    assert nowhere(**{name: value.to("meta") for name, value in call.items()}).shape == (1, 16, 64)
    flux = small.small_flux()
    with torch.autocast("cpu", torch.bfloat16):
        rough = flux(**call)
    rough.float().square().sum().backward()
    assert rough.dtype == torch.bfloat16
    assert small.relative_error(rough.float(), flux(**call)) < 0.1
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in flux.parameters())


@torch.no_grad()
def test_bfloat16_weights_keep_exact_times() -> None:
    """bfloat16 would make 972 of 973.1: in the highest frequency, more than half a radian."""
    flux = small.small_flux()
    y, exact, rounded = torch.zeros(1, 24), torch.tensor([0.9731]), torch.tensor([0.972])
    wanted, wrong = (flux.condition(t, y, torch.tensor([3.5]), torch.float32) for t in (exact, rounded))
    got = flux.bfloat16().condition(exact, y.bfloat16(), torch.tensor([3.5]), torch.bfloat16).float()
    assert (got - wanted).norm() < (got - wrong).norm() / 5
    assert sinusoid(exact.bfloat16()).dtype == torch.float32
    turn = rotation(torch.tensor([[[0.0, 100.0, 3.0]]]).bfloat16(), (4, 6, 6), 10_000)
    assert turn.cos_B1LD.dtype == torch.float32
    assert turn.cos_B1LD[0, 0, 0, 2] == pytest.approx(0.8623188722876839, abs=1e-7)  # cos(100)


def test_a_missing_guidance_is_refused() -> None:
    with pytest.raises(ValueError, match="one value for each picture"):
        small.small_flux()(**{**small.inputs(1, 4, 4, False), "guidance_B": None})


@pytest.mark.parametrize("wrong", [{"num_heads": 5}, {"axes_dim": (4, 6, 8)}, {"axes_dim": (5, 5, 6)}])
def test_impossible_sizes_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        dataclasses.replace(small.FLUX, **wrong)  # type: ignore[arg-type]


def shard(linear: nn.Linear, index: Tensor, dim: int) -> None:
    linear.weight = nn.Parameter(linear.weight.index_select(dim, index))
    if dim == 0:
        linear.bias = nn.Parameter(linear.bias[index])
    else:
        linear.bias = nn.Parameter(linear.bias / 2)


def halves(width: int, rank: int, *, fused: int) -> Tensor:
    """This rank's half of each of `fused` projections laid end to end."""
    starts = torch.arange(fused)[:, None] * width + rank * width // 2
    return (starts + torch.arange(width // 2)).flatten()


@torch.no_grad()
def test_a_block_with_half_of_the_heads_gives_half_of_the_sum() -> None:
    """What tensor parallelism needs of the blocks: heads counted from the tensors, outputs that add up."""
    config: FluxConfig = small.FLUX
    width, mlp = config.hidden_size, config.mlp_size
    generator = torch.Generator().manual_seed(5)
    x, vec = torch.randn(1, 9, width, generator=generator), torch.randn(1, width, generator=generator)
    turn = rotation(small.grid(3, 3, 0)[None], config.axes_dim, config.theta)

    def single(rank: int | None) -> Tensor:
        block = SingleBlock(config)
        small.randomize(block, 6)
        if rank is not None:
            ends = halves(mlp, rank, fused=1)
            shard(block.linear1, torch.cat((halves(width, rank, fused=3), ends + 3 * width)), 0)
            shard(block.linear2, torch.cat((halves(width, rank, fused=1), ends + width)), 1)
        out: Tensor = block(x, vec, turn) - x
        return out

    torch.testing.assert_close(single(0) + single(1), single(None))


@torch.no_grad()
def test_attention_is_one_module_that_can_be_replaced() -> None:
    seen = []

    class Watched(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, qkv: tuple[Tensor, ...], turn: object) -> Tensor:
            seen.append(qkv[0].shape)
            out: Tensor = self.inner(qkv, turn)
            return out

    flux, call = small.small_flux(), small.inputs(1, 4, 4, False)
    before = flux(**call)
    for block in (*flux.double_blocks, *flux.single_blocks):
        assert isinstance(block, DoubleBlock | SingleBlock)
        block.attend = Watched(block.attend)  # type: ignore[assignment]
    torch.testing.assert_close(flux(**call), before, rtol=0, atol=0)
    assert seen == [(1, 4, 23, 16)] * 4


@torch.no_grad()
def test_the_blocks_compile_whole_with_one_graph_for_each_kind() -> None:
    flux, call = small.small_flux(), small.inputs(1, 4, 4, False)
    before = flux(**call)
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: object) -> Any:
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    compile_blocks(flux, backend=keep)
    torch.testing.assert_close(flux(**call), before)
    assert len(graphs) == 2


@torch.no_grad()
@pytest.mark.parametrize("config", [small.VAE, VaeConfig(ch=8, ch_mult=(1, 2, 4), num_res_blocks=1, norm_groups=2)])
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 32, 32), (2, 48, 16)])
def test_autoencoder_equals_diffusers(config: VaeConfig, batch: int, height: int, width: int) -> None:
    vae = AutoEncoder(config).eval()
    small.randomize(vae, 2)
    peer = small.peer_vae(vae)
    rgb = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(7)) * 2 - 1
    posterior = peer.encode(rgb).latent_dist
    latent = (posterior.mean - config.shift_factor) * config.scale_factor
    assert small.relative_error(vae.encode(rgb), latent) <= 1e-5
    assert small.relative_error(vae.encode_moments(rgb)[1].clamp(-30, 20), posterior.logvar) <= 1e-5
    decoded = peer.decode(latent / config.scale_factor + config.shift_factor).sample
    assert small.relative_error(vae.decode(latent), decoded) <= 1e-5


@torch.no_grad()
def test_every_autoencoder_tensor_moves_its_output() -> None:
    """But for the key bias of attention, which softmax cannot see."""
    vae = small.small_vae()
    rgb = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(8)) * 2 - 1
    latent = vae.encode(rgb)

    def outputs() -> Tensor:
        mean, logvar = vae.encode_moments(rgb)
        return torch.cat([t.flatten() for t in (mean, logvar, vae.decode(latent))])

    before, unmoved = outputs(), []
    for name, tensor in vae.state_dict().items():
        kept = tensor.clone()
        tensor.zero_()
        if small.relative_error(outputs(), before) < 1e-4:
            unmoved.append(name)
        tensor.copy_(kept)
    assert unmoved == ["encoder.mid.attn_1.k.bias", "decoder.mid.attn_1.k.bias"]


@pytest.mark.parametrize(("length", "expected"), [(5, 1), (8, 1), (9, 2), (14, 2), (15, 3), (100, 17)])
def test_tiles_cover_the_length_with_at_least_the_overlap(length: int, expected: int) -> None:
    tiles = spans(length, tile=8, overlap=2)
    assert len(tiles) == expected
    assert (tiles[0][0], tiles[-1][1]) == (0, length)
    assert {end - start for start, end in tiles} == {min(length, 8)}
    assert all(before[1] - after[0] >= 2 for before, after in pairwise(tiles))


@torch.no_grad()
def test_tiled_decode_is_close_and_says_how_close(capsys: pytest.CaptureFixture[str]) -> None:
    """Group norms and attention see a whole picture or only a tile; the rest is exact. Measured on a trained
    autoencoder, at the size from which pictures are tiled."""
    vae = load_vae(MODELS / "vae" / "ae.safetensors", None, "cpu", torch.float32)
    star = Item("star", "red", "large", "centre", 700, 560, 600)
    scene = draw(Scene(1216, 1184, "sides", ("blue", "yellow"), (star,)))
    latent = vae.encode(torch.from_numpy(scene).permute(2, 0, 1)[None].float() / 127.5 - 1)
    whole, tiled = (latents.to_pixels(rgb).float() for rgb in (vae.decode(latent), vae.decode_tiled(latent)))
    difference = (tiled - whole).abs()
    with capsys.disabled():
        print(f" tiled decode: mean {difference.mean():.2f}/255, largest {difference.max():.0f}/255")
    assert tiled.shape == whole.shape
    assert 0 < difference.mean() < 8  # the tiny autoencoder never saw such sizes: whole or in tiles it is only near
    torch.testing.assert_close(vae.decode_tiled(latent[..., :40, :40]), vae.decode(latent[..., :40, :40]))


@torch.no_grad()
def test_tiles_of_a_purely_local_decoder_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = small.small_vae()
    monkeypatch.setattr(vae, "decode", lambda z: z[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3))
    latent = torch.randn(2, 16, 21, 13, generator=torch.Generator().manual_seed(10))
    torch.testing.assert_close(vae.decode_tiled(latent, tile=8, overlap=3), vae.decode(latent))
