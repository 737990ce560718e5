"""One set of random weights in every container gives the same networks; bad files are named for what they are."""

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from actors.flux import checkpoint as checkpoint_module
from actors.flux.checkpoint import Slice, open_checkpoint
from actors.flux.config import FLUX1_DEV, FLUX1_SCHNELL, FLUX1_VAE, FluxConfig, VaeConfig
from actors.flux.model import Flux
from actors.flux.shapes import ClipSizes, T5Sizes, expected
from actors.flux.vae import AutoEncoder
from actors.flux.weights import NotRendered, WeightsError, load_flux, load_text, load_vae, weights_sha256
from tests.flux import containers_kit as kit

CPU, F32 = "cpu", torch.float32
FLUX_WEIGHTS = kit.random_tensors(kit.FLUX, seed=1)
VAE_WEIGHTS = kit.random_tensors(kit.VAE, seed=2)
T5_WEIGHTS = kit.random_tensors(kit.T5, seed=3)
CLIP_WEIGHTS = kit.random_tensors(kit.CLIP, seed=4)
CLIP_STORED = {f"text_model.{name}": tensor for name, tensor in CLIP_WEIGHTS.items()} | {
    "logit_scale": torch.tensor(4.6),
    "text_projection.weight": torch.eye(16),
}


def bfl_file(folder: Path) -> Path:
    kit.write_config(folder)
    return kit.write(folder / "flux1-dev.safetensors", FLUX_WEIGHTS)


def bfl_folder(folder: Path) -> Path:
    kit.write(folder / "ae.safetensors", VAE_WEIGHTS)
    return bfl_file(folder).parent


def write_tokenizer(folder: Path, size: int) -> None:
    folder.mkdir(parents=True)
    words = {f"w{index}": index for index in range(2, size)} | {"<pad>": 0, "</s>": 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"pad_token": "<pad>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))


def comfyui(
    folder: Path, prefix: str = "", transformers: str = "diffusion_models", texts: str = "text_encoders"
) -> Path:
    kit.write_config(folder)
    kit.write(folder / transformers / "flux1-dev.safetensors", {prefix + k: v for k, v in FLUX_WEIGHTS.items()})
    kit.write(folder / "vae" / "ae.safetensors", VAE_WEIGHTS)
    kit.write(folder / texts / "t5xxl_fp16.safetensors", T5_WEIGHTS)
    kit.write(folder / texts / "clip_l.safetensors", CLIP_STORED)
    write_tokenizer(folder / "tokenizers" / "t5", kit.T5.vocab_size)
    write_tokenizer(folder / "tokenizers" / "clip", kit.CLIP.vocab_size)
    return folder


def comfyui_installation(folder: Path) -> Path:
    return comfyui(folder / "models", "model.diffusion_model.", "unet", "clip").parent


def all_in_one(folder: Path) -> Path:
    kit.write_config(folder)
    parts = (
        ("model.diffusion_model.", FLUX_WEIGHTS),
        ("vae.", VAE_WEIGHTS),
        ("text_encoders.t5xxl.transformer.", T5_WEIGHTS),
        ("text_encoders.clip_l.transformer.", CLIP_STORED),
    )
    tensors = {prefix + name: tensor for prefix, part in parts for name, tensor in part.items()}
    for name, size in (("t5", kit.T5.vocab_size), ("clip", kit.CLIP.vocab_size)):
        write_tokenizer(folder / "tokenizers" / name, size)
    return kit.write(folder / "checkpoints" / "all.safetensors", tensors)


def diffusers(folder: Path) -> Path:
    kit.write_shards(folder / "transformer", kit.flux_in_diffusers(FLUX_WEIGHTS), "diffusion_pytorch_model", count=3)
    kit.write(folder / "vae" / "diffusion_pytorch_model.safetensors", kit.vae_in_diffusers(VAE_WEIGHTS))
    kit.write(folder / "text_encoder" / "model.safetensors", CLIP_STORED)
    kit.write_shards(folder / "text_encoder_2", T5_WEIGHTS, "model", count=2)
    write_tokenizer(folder / "tokenizer", kit.CLIP.vocab_size)
    write_tokenizer(folder / "tokenizer_2", kit.T5.vocab_size)
    transformer = {"axes_dims_rope": [4, 6, 6], "num_layers": 2, "num_single_layers": 3, "guidance_embeds": True}
    configs = {
        "transformer": transformer,
        "vae": {"norm_num_groups": 4, "layers_per_block": 1, "scaling_factor": 0.3611, "shift_factor": 0.1159},
        "text_encoder": {**vars(kit.CLIP), "eos_token_id": 1, "bos_token_id": 0, "architectures": ["CLIPTextModel"]},
        "text_encoder_2": {**vars(kit.T5), "feed_forward_proj": "gated-gelu"},
    }
    for name, config in configs.items():
        (folder / name / "config.json").write_text(json.dumps(config))
    (folder / "model_index.json").write_text("{}")
    return folder


CONTAINERS = [bfl_file, bfl_folder, comfyui, comfyui_installation, all_in_one, diffusers]
WHOLE = [comfyui, comfyui_installation, all_in_one, diffusers]


def same(module: nn.Module, tensors: kit.Tensors) -> bool:
    return all(torch.equal(parameter, tensors[name]) for name, parameter in module.named_parameters())


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


def reference() -> Flux:
    model = Flux(kit.FLUX)
    model.load_state_dict(FLUX_WEIGHTS)
    return model.eval()


@torch.no_grad()
def velocity(model: Flux) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    img, txt, y = (torch.randn(shape, generator=generator) for shape in ((2, 6, 64), (2, 4, 24), (2, 16)))
    ids = torch.arange(18.0).view(1, 6, 3).expand(2, 6, 3)
    out: Tensor = model(img, ids, txt, torch.zeros(2, 4, 3), torch.tensor([0.3, 0.9]), y, torch.tensor([3.5, 1.0]))
    return out


def test_the_tables_of_shapes_are_those_of_the_networks() -> None:
    with torch.device("meta"):
        for config in (FLUX1_DEV, FLUX1_SCHNELL, kit.FLUX, replace(kit.FLUX, mlp_ratio=3.0, in_channels=16)):
            assert shapes_of(Flux(config)) == expected(config)
        for vae in (FLUX1_VAE, kit.VAE, VaeConfig(ch=16, ch_mult=(1, 1, 3), num_res_blocks=3, norm_groups=8)):
            assert shapes_of(AutoEncoder(vae)) == expected(vae)


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_and_targets(tmp_path: Path, dtype: torch.dtype) -> None:
    halves = {name: tensor.to(dtype) for name, tensor in FLUX_WEIGHTS.items()}
    path = kit.write(tmp_path / "flux.safetensors", halves)
    assert same(load_flux(path, kit.FLUX, CPU, dtype), halves)
    assert same(load_flux(path, kit.FLUX, CPU, F32), {name: tensor.float() for name, tensor in halves.items()})


@pytest.mark.parametrize("convention", ["old", "new", "metadata", "rows"])
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


@pytest.mark.parametrize("write", [bfl_file, diffusers])
@pytest.mark.parametrize("window", [1, 200, 2**25])
def test_slices_are_those_of_the_whole_tensor(
    tmp_path: Path, write: Callable[[Path], Path], window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard's share, whatever pieces it is put together from and however few rows fit a window."""
    monkeypatch.setattr(checkpoint_module, "WINDOW", window)
    checkpoint = open_checkpoint(write(tmp_path))
    heads = [Slice(0, start + 16, 16) for start in (0, 32, 64)]  # the second head of q, k and v
    for name in ("double_blocks.1.img_attn.qkv.weight", "single_blocks.2.linear1.bias"):
        whole = FLUX_WEIGHTS[name]
        assert torch.equal(checkpoint.read(name, F32), whole)
        assert torch.equal(checkpoint.read(name, F32, Slice(0, 20, 50)), whole[20:70])
        assert torch.equal(checkpoint.read(name, F32, heads), torch.cat([whole[16:32], whole[48:64], whole[80:96]]))
    swapped = FLUX_WEIGHTS["final_layer.adaLN_modulation.1.weight"]
    assert torch.equal(checkpoint.read("final_layer.adaLN_modulation.1.weight", F32, Slice(0, 30, 4)), swapped[30:34])
    wide = FLUX_WEIGHTS["single_blocks.0.linear2.weight"]
    columns = [Slice(1, 16, 16), Slice(1, 96, 64)]
    assert torch.equal(
        checkpoint.read("single_blocks.0.linear2.weight", F32, columns),
        torch.cat([wide[:, 16:32], wide[:, 96:160]], dim=1),
    )


@pytest.mark.parametrize("convention", ["old", "rows"])
def test_slices_of_fp8_keep_their_scales(tmp_path: Path, convention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "WINDOW", 100)
    stored, meant, metadata = kit.quantised(FLUX_WEIGHTS, convention)
    checkpoint = open_checkpoint(kit.write(tmp_path / "f.safetensors", stored, metadata))
    name = "double_blocks.0.txt_mlp.0.weight"
    assert torch.equal(checkpoint.read(name, F32, Slice(0, 33, 40)), meant[name][33:73])
    assert torch.equal(checkpoint.read(name, F32, Slice(1, 5, 9)), meant[name][:, 5:14])


def test_data_that_begins_at_an_odd_byte_is_read(tmp_path: Path) -> None:
    path = bfl_file(tmp_path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    path.write_bytes((length + 1).to_bytes(8, "little") + data[8 : 8 + length] + b" " + data[8 + length :])
    assert same(load_flux(path, None, CPU, F32), FLUX_WEIGHTS)


def test_slices_outside_a_tensor_are_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(bfl_file(tmp_path))
    for slices in (Slice(0, 90, 10), Slice(2, 0, 1), Slice(0, -1, 2), [Slice(0, 0, 1), Slice(1, 0, 1)], []):
        with pytest.raises(ValueError, match="lie"):
            checkpoint.read("double_blocks.0.img_attn.qkv.weight", F32, slices)
    with pytest.raises(WeightsError, match=r"nothing.weight is not in it"):
        checkpoint.read("nothing.weight", F32)


def test_sizes_are_deduced_from_the_shapes_of_real_heads(tmp_path: Path) -> None:
    config = FluxConfig(
        in_channels=64, vec_in_dim=8, context_in_dim=12, hidden_size=256, num_heads=2, depth=1,
        depth_single_blocks=2, guidance_embed=False,
    )  # fmt: skip
    path = kit.write(tmp_path / "small.safetensors", kit.random_tensors(config))
    assert load_flux(path, None, CPU, torch.bfloat16).config == config


def without(tensors: kit.Tensors, *names: str) -> kit.Tensors:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (without(FLUX_WEIGHTS, "img_in.bias"), "1 missing: img_in.bias"),
        (without(FLUX_WEIGHTS, *(n for n in FLUX_WEIGHTS if n.startswith("single_blocks.2."))), "8 missing"),
        (FLUX_WEIGHTS | {"extra.weight": torch.zeros(2)}, "1 unexpected: extra.weight"),
        (FLUX_WEIGHTS | {"txt_in.bias": torch.zeros(31)}, r"wrong shape: txt_in.bias is \[31\], not \[32\]"),
        ({"something.weight": torch.zeros(2)}, "no model known here"),
        ({"model.diffusion_model.input_blocks.0.w": torch.zeros(1), "x.output_blocks.0.w": torch.zeros(1)}, "Stable"),
        (VAE_WEIGHTS, "no transformer"),
    ],
)
def test_files_that_do_not_fit_are_told_why(tmp_path: Path, tensors: kit.Tensors, says: str) -> None:
    kit.write_config(tmp_path)
    with pytest.raises(WeightsError, match=says):
        load_flux(kit.write(tmp_path / "flux.safetensors", tensors), None, CPU, F32)


def named(*names: str, dtype: torch.dtype = torch.float32) -> kit.Tensors:
    return {name: torch.zeros(2, 4).to(dtype) for name in names}


NVFP4 = FLUX_WEIGHTS | named("img_in.weight_scale_2", "img_in.pre_quant_scale")
INT8 = FLUX_WEIGHTS | {
    "img_in.weight": torch.zeros(32, 64, dtype=torch.int8),
    "img_in.weight_scale": torch.ones(1),
}
MXFP8 = FLUX_WEIGHTS | {
    "img_in.weight": torch.zeros(32, 64, dtype=torch.float8_e4m3fn),
    "img_in.weight_scale": torch.ones(32, 2, dtype=torch.uint8),
}
BLOCKS = MXFP8 | {"img_in.weight_scale": torch.ones(4, 8)}


@pytest.mark.parametrize(
    ("tensors", "metadata", "what"),
    [
        (named("double_blocks.0.img_attn.qkv.lora_A.weight"), {}, "a LoRA"),
        (named("lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"), {}, "a LoRA"),
        (named("double_stream_modulation_img.lin.weight", "img_in.weight"), {}, "FLUX.2 transformer"),
        (named("bn.running_mean", "decoder.conv_in.weight"), {}, "FLUX.2 autoencoder"),
        (named("model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.gate_proj.weight"), {}, "FLUX.2 text"),
        (FLUX_WEIGHTS | {"img_in.weight": torch.zeros(32, 384)}, {}, "FLUX.1 Fill"),
        (NVFP4, {}, "nvfp4"),
        (INT8, {}, "I8 weights"),
        (MXFP8, {}, "mxfp8"),
        (BLOCKS, {}, "blocks"),
        (FLUX_WEIGHTS, {"_quantization_metadata": '{"layers": {"img_in": {"format": "nvfp4"}}}'}, "nvfp4"),
    ],
)
def test_neighbours_are_known_but_not_rendered(
    tmp_path: Path, tensors: kit.Tensors, metadata: dict[str, str], what: str
) -> None:
    path = kit.write(tmp_path / "x.safetensors", tensors, metadata or None)
    with pytest.raises(NotRendered, match="not rendered yet") as caught:
        load_flux(path, kit.FLUX, CPU, F32)
    assert what in str(caught.value)


@pytest.mark.parametrize("document", [b'{"format": "nvfp4"}', b"[1]", b"\xff\xff", b"{" * 90])
def test_a_layers_own_word_on_its_format_is_checked(tmp_path: Path, document: bytes) -> None:
    stored, _, _ = kit.quantised(FLUX_WEIGHTS, "new")
    stored["img_in.comfy_quant"] = torch.tensor(list(document), dtype=torch.uint8)
    with pytest.raises(WeightsError, match=r"nvfp4|corrupt quantisation"):
        load_flux(kit.write(tmp_path / "x.safetensors", stored), kit.FLUX, CPU, F32)


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ({"weight_map": {"a": "../../secret.safetensors"}}, "not a file beside it"),
        ({"weight_map": {"a": "/etc/passwd"}}, "not a file beside it"),
        ({"weight_map": {"a": "absent-00001-of-00002.safetensors"}}, "1 of 1 shards are not there"),
        ({"weight_map": {"a": 3}}, "weight_map"),
        ({"weight_map": {}}, "weight_map"),
        ([], "not an object"),
    ],
)
def test_an_index_leads_nowhere_else(tmp_path: Path, index: object, says: str) -> None:
    diffusers(tmp_path)
    (tmp_path / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=says):
        load_flux(tmp_path, None, CPU, F32)


def test_a_shard_that_is_missing_or_cut_short_is_named(tmp_path: Path) -> None:
    diffusers(tmp_path)
    shard = tmp_path / "transformer" / "diffusion_pytorch_model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(WeightsError, match=r"00002-of-00003.*truncated"):
        load_flux(tmp_path, None, CPU, F32)
    shard.unlink()
    with pytest.raises(WeightsError, match="1 of 3 shards are not there"):
        load_flux(tmp_path, None, CPU, F32)


def test_a_projection_that_lacks_its_key_is_missing(tmp_path: Path) -> None:
    diffusers(tmp_path)
    tensors = without(kit.flux_in_diffusers(FLUX_WEIGHTS), "transformer_blocks.0.attn.to_k.weight")
    for file in (tmp_path / "transformer").glob("*.safetensors*"):
        file.unlink()
    kit.write(tmp_path / "transformer" / "diffusion_pytorch_model.safetensors", tensors)
    with pytest.raises(WeightsError, match=r"missing: double_blocks.0.img_attn.qkv.weight"):
        load_flux(tmp_path, None, CPU, F32)


def test_a_missing_tokenizer_says_where_it_belongs(tmp_path: Path) -> None:
    comfyui(tmp_path)
    (tmp_path / "tokenizers" / "clip" / "tokenizer_config.json").unlink()
    with pytest.raises(WeightsError, match="tokenizers/clip of the models folder"):
        load_text(tmp_path, CPU, F32)


def test_several_transformers_want_a_name(tmp_path: Path) -> None:
    comfyui(tmp_path)
    other = kit.write(tmp_path / "diffusion_models" / "kontext.safetensors", FLUX_WEIGHTS)
    with pytest.raises(WeightsError, match=r"name one of them: flux1-dev.safetensors, kontext.safetensors"):
        load_flux(tmp_path, None, CPU, F32)
    assert same(load_flux(other, None, CPU, F32), FLUX_WEIGHTS)


def test_a_file_that_shrinks_under_the_reader_is_an_error_not_a_crash(tmp_path: Path) -> None:
    path = bfl_file(tmp_path)
    checkpoint = open_checkpoint(path)
    with path.open("r+b") as file:
        file.truncate(checkpoint.stored.tensors["img_in.weight"].start)
    with pytest.raises(WeightsError, match="changed while it was read"):
        checkpoint.read("img_in.weight", F32)


def test_the_fingerprint_is_of_contents_alone(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"one")
    second.write_bytes(b"two")
    before = weights_sha256([first, second])
    moved = second.rename(tmp_path / "0")
    assert weights_sha256([moved, first]) == before
    moved.write_bytes(b"twO")
    assert weights_sha256([moved, first]) != before


MEASURE = """
    import json, sys
    from pathlib import Path
    import torch
    from actors.flux.config import FluxConfig
    from actors.flux.weights import load_flux

    def peak():
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    config = FluxConfig(**{**json.loads(sys.argv[2]), "axes_dim": (16, 56, 56)})
    torch.zeros(8).float().bfloat16()
    before = peak()
    model = load_flux(Path(sys.argv[1]), config, "cpu", torch.bfloat16)
    kept = sum(tensor.nbytes for tensor in model.parameters())
    print(json.dumps([kept, peak() - before]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["BF16", "F32", "F8_E4M3"])
def test_loading_holds_hardly_more_than_it_keeps(tmp_path: Path, dtype: str) -> None:
    """Peak resident memory, mapped pages included, in a process of its own: a model of some 300 MB."""
    config = replace(FLUX1_DEV, hidden_size=1024, num_heads=8, depth=2, depth_single_blocks=4, context_in_dim=64)
    path = tmp_path / "flux.safetensors"
    kit.write_sparse(path, expected(config), dtype)
    values = json.dumps({name: value for name, value in vars(config).items() if name != "axes_dim"})
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURE), str(path), values],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    kept, peak = json.loads(child.stdout)
    assert kept > 250_000_000
    assert kept < peak < 1.2 * kept


def test_sizes_of_text_encoders_are_the_released_ones_by_default() -> None:
    assert sum(len(expected(sizes)) for sizes in (T5Sizes(), ClipSizes())) == 219 + 196
