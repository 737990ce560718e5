"""Folders that diffusers itself wrote: what we read from them computes what diffusers computes."""

import warnings
from pathlib import Path

import pytest
import torch

from actors import loading, models
from actors.cards import TEXT_TOKENS, TINY
from actors.flux.check import check
from actors.flux.weights import load_flux, load_vae

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the library's own imports
    from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel

    from tests.flux.test_render import difference, job, make_renderer, peer, peer_options


def randomise(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(5)
    for parameter in module.parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator)


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize(("name", "shard"), [("transformer", "100KB"), ("mine", "100KB"), ("mine", "1GB")])
@torch.no_grad()
def test_a_transformer_computes_what_diffusers_computes(tmp_path: Path, name: str, shard: str) -> None:
    theirs = FluxTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, pooled_projection_dim=12, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
    ).eval()  # fmt: skip
    randomise(theirs)
    folder = tmp_path / name
    theirs.save_pretrained(folder, max_shard_size=shard)
    assert (len(list(folder.glob("*.safetensors"))) > 1) is (shard == "100KB")
    assert check(folder).loads
    ours = load_flux(folder, None, "cpu", torch.float32)
    generator = torch.Generator().manual_seed(6)
    img, txt, pooled = (torch.randn(shape, generator=generator) for shape in ((1, 6, 16), (1, 4, 24), (1, 12)))
    img_ids = torch.tensor([[0.0, row, column] for row in range(2) for column in range(3)])
    time, guidance = torch.tensor([0.7]), torch.tensor([3.5])
    want = theirs(
        hidden_states=img, encoder_hidden_states=txt, pooled_projections=pooled, timestep=time,
        img_ids=img_ids, txt_ids=torch.zeros(4, 3), guidance=guidance, return_dict=False,
    )[0]  # fmt: skip
    have = ours(img, img_ids[None], txt, torch.zeros(1, 4, 3), time, pooled, guidance)
    assert relative(have, want) < 1e-5


@pytest.mark.parametrize("name", ["transformer", "mine"])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_variant_is_read_where_nothing_is_plain(tmp_path: Path, name: str, shards: int) -> None:
    theirs = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, pooled_projection_dim=12, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    size, folder = "1GB" if shards == 1 else "60KB", tmp_path / name
    theirs.half().save_pretrained(folder, variant="fp16", max_shard_size=size)
    files = [file.name for file in folder.glob("*.safetensors*")]
    assert all("fp16" in file for file in files)
    assert len(files) > shards - 1
    assert check(folder).precision == "float16"
    ours = load_flux(folder, None, "cpu", torch.float32)
    assert torch.equal(ours.img_in.weight, theirs.x_embedder.weight.float())
    theirs.bfloat16().save_pretrained(folder, max_shard_size="60KB" if shards == 1 else "1GB")
    assert check(folder).precision == "bfloat16"
    assert load_flux(folder, None, "cpu", torch.float32)


@pytest.mark.parametrize("name", ["vae", "mine"])
@torch.no_grad()
def test_an_autoencoder_computes_what_diffusers_computes(tmp_path: Path, name: str) -> None:
    theirs = AutoencoderKL(
        block_out_channels=(8, 16, 16), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, layers_per_block=2, latent_channels=16, norm_num_groups=4,
        use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.5, shift_factor=0.25,
    ).eval()  # fmt: skip
    randomise(theirs)
    theirs.save_pretrained(tmp_path / name)
    ours = load_vae(tmp_path / name, None, "cpu", torch.float32)
    assert (ours.config.scale_factor, ours.config.shift_factor) == (0.5, 0.25)
    generator = torch.Generator().manual_seed(6)
    rgb, latent = (torch.randn(shape, generator=generator) for shape in ((1, 3, 24, 16), (1, 16, 6, 4)))
    assert relative(ours.encode(rgb), (theirs.encode(rgb).latent_dist.mode() - 0.25) * 0.5) < 1e-5
    assert relative(ours.decode(latent), theirs.decode(latent / 0.5 + 0.25).sample) < 1e-5


@torch.no_grad()
def test_a_whole_pipeline_that_diffusers_saved_draws_its_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its heads, axes and groups are of no released size: they come from its config.json files."""
    made = make_renderer()
    theirs, work = peer(made, FluxPipeline), job("a blue square")
    theirs.save_pretrained(tmp_path / "hub" / "mine")
    monkeypatch.setattr(models, "TINY_FOLDER", tmp_path / "hub")
    assert check(tmp_path / "hub").complete
    loaded = loading.load_renderer(TINY, None, loading.Load("cpu", torch.float32))
    options = peer_options(work) | {"max_sequence_length": TEXT_TOKENS["tiny"]}
    assert difference(loaded.render([work])[0], theirs(**options).images[0]) <= 2
