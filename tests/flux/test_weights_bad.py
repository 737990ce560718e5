"""Files that cannot be used are named for what they are."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from actors.flux.beside import highest_token
from actors.flux.check import check
from actors.flux.weights import NotRendered, WeightsError, load_flux, load_text
from tests.flux import containers_kit as kit
from tests.flux.samples import CPU, F32, FLUX_WEIGHTS, VAE_WEIGHTS, comfyui, diffusers, same, without, write_tokenizer


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


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (named("img_in.weight", "transformer_blocks.0.attn.to_q.weight", "txt_norm.weight"), "Qwen-Image"),
        (named("x_embedder.weight", "cap_embedder.0.weight", "layers.0.attention.qkv.weight"), "Z-Image or Lumina"),
        (named("img_in.weight", "transformer_blocks.0.attn.to_q.weight"), "no model known here"),
        (named("x_embedder.weight", "blocks.0.attn.q.weight"), "no model known here"),
    ],
)
def test_an_image_input_alone_makes_no_flux(tmp_path: Path, tensors: kit.Tensors, says: str) -> None:
    with pytest.raises(WeightsError, match=says):
        load_flux(kit.write(tmp_path / "x.safetensors", tensors), None, CPU, F32)


NVFP4 = FLUX_WEIGHTS | named("img_in.weight_scale_2", "img_in.pre_quant_scale")
INT8_OLD = FLUX_WEIGHTS | {
    "img_in.weight": torch.zeros(32, 64, dtype=torch.int8),
    "img_in.scale_weight": torch.ones(1),
}
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
        (named("double_blocks.0.processor.proj_lora1.down.weight"), {}, "a LoRA"),
        (named("double_blocks.0.processor.proj_lora2.up.weight"), {}, "a LoRA"),
        (named("transformer.transformer_blocks.0.attn.to_q.lora.up.weight"), {}, "a LoRA"),
        (named("transformer.transformer_blocks.0.attn.to_q.lora.down.weight"), {}, "a LoRA"),
        (named("oft_unet_double_blocks_0_img_attn_proj.oft_blocks"), {}, "a LoRA"),
        (named("double_stream_modulation_img.lin.weight", "img_in.weight"), {}, "FLUX.2 transformer"),
        (named("bn.running_mean", "decoder.conv_in.weight"), {}, "FLUX.2 autoencoder"),
        (
            named("model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.gate_proj.weight"),
            {},
            "a language model, as FLUX.2",
        ),
        (FLUX_WEIGHTS | {"img_in.weight": torch.zeros(32, 384)}, {}, "FLUX.1 Fill"),
        (NVFP4, {}, "nvfp4"),
        (INT8, {}, "I8 weights"),
        (INT8_OLD, {}, "I8 weights"),
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


@pytest.mark.parametrize(
    ("document", "says"),
    [
        *((json.dumps({"format": name}).encode(), "") for name in kit.DECLARED),
        (b'{"format": "nvfp4"}', "'nvfp4' weights: known, but not rendered yet"),
        (b'{"format": "float8_e4m3fn_blockwise"}', "'float8_e4m3fn_blockwise' weights: known"),
        (b'{"format": ["x"]}', "weights: known"),
        (b"{}", "'None' weights: known"),
        (b"[1]", "corrupt quantisation"),
        (b"\xff\xff", "corrupt quantisation"),
        (b"{" * 90, "corrupt quantisation"),
        (b" " * 5000, "img_in.comfy_quant is no comfy_quant document"),
    ],
)
@pytest.mark.parametrize("sharded", [False, True])
def test_a_layers_own_word_on_its_format_is_heard_by_check_and_load_alike(
    tmp_path: Path, document: bytes, says: str, sharded: bool
) -> None:
    stored, _, _ = kit.quantised(FLUX_WEIGHTS, "new")
    stored["img_in.comfy_quant"] = torch.tensor(list(document), dtype=torch.uint8)
    kit.write_config(tmp_path)
    if sharded:
        kit.write_shards(path := tmp_path / "x", stored, "model", count=3)
        (path / "config.json").write_text("{}")
    else:
        path = kit.write(tmp_path / "x.safetensors", stored)
    report = check(path)
    assert report.loads is not bool(says)
    assert says in "".join((*report.known, *report.problems))
    if not says:
        load_flux(path, None, CPU, F32)
        return
    with pytest.raises(WeightsError) as caught:
        load_flux(path, None, CPU, F32)
    assert says in str(caught.value)


@pytest.mark.parametrize(("declared", "loads"), [*((name, True) for name in kit.DECLARED), ("int8_tensorwise", False)])
def test_what_the_header_declares_is_heard_by_both_too(tmp_path: Path, declared: str, loads: bool) -> None:
    kit.write_config(tmp_path)
    metadata = {"_quantization_metadata": json.dumps({"layers": {"img_in": {"format": declared}}})}
    path = kit.write(tmp_path / "x.safetensors", FLUX_WEIGHTS, metadata)
    assert check(path).loads is loads
    if loads:
        assert same(load_flux(path, None, CPU, F32), FLUX_WEIGHTS)
        return
    with pytest.raises(NotRendered, match=declared):
        load_flux(path, None, CPU, F32)


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


@pytest.mark.parametrize("content", ["{", "{}", '{"model": 3}', None])
def test_a_broken_tokenizer_is_named(tmp_path: Path, content: str | None) -> None:
    file = comfyui(tmp_path) / "tokenizers" / "t5" / "tokenizer.json"
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    with pytest.raises(WeightsError, match="tokenizers/t5: no tokenizer can be read"):
        load_text(tmp_path, CPU, F32)


@pytest.mark.parametrize(("part", "rows"), [("t5", kit.T5.vocab_size), ("clip", kit.CLIP.vocab_size)])
def test_a_tokenizer_of_more_words_than_the_embedding_has_rows_is_refused(tmp_path: Path, part: str, rows: int) -> None:
    folder = comfyui(tmp_path) / "tokenizers" / part
    shutil.rmtree(folder)
    write_tokenizer(folder, rows + 1)
    says = f"tokenizers/{part}: its words are numbered up to {rows}, and the encoder's embedding has {rows} rows"
    with pytest.raises(WeightsError, match=says):
        load_text(tmp_path, CPU, F32)
    report = check(tmp_path)
    assert not report.complete
    assert report.absent == (f"tokenizer of {part}",)
    assert says in report.problems[0]
    shutil.rmtree(folder)
    write_tokenizer(folder, rows)
    assert check(tmp_path).complete
    assert load_text(tmp_path, CPU, F32)


@pytest.mark.parametrize(
    ("name", "document", "highest"),
    [
        ("tokenizer.json", {"model": {"vocab": {"a": 0, "b": 7}}, "added_tokens": [{"id": 3}]}, 7),
        ("tokenizer.json", {"model": {"vocab": [["a", 0.0], ["b", -1.5]]}, "added_tokens": [{"id": 9}, 4]}, 9),
        ("tokenizer.json", {"model": {"vocab": [["a", 0.0], ["b", -1.5]]}}, 1),
        ("tokenizer.json", {"model": 3, "added_tokens": {"id": 4}}, -1),
        ("tokenizer.json", {"model": {"vocab": {"a": "x"}}}, -1),
        ("vocab.json", {"a": 0, "b": 11}, 11),
        ("spiece.model", {}, -1),
    ],
)
def test_the_highest_word_of_each_kind_of_tokenizer(tmp_path: Path, name: str, document: object, highest: int) -> None:
    (tmp_path / name).write_text(json.dumps(document))
    assert highest_token(tmp_path) == highest


def test_a_clip_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    file = comfyui(tmp_path) / "tokenizers" / "clip" / "tokenizer_config.json"
    special = json.loads(file.read_text())
    del special["eos_token"]
    file.write_text(json.dumps(special))
    with pytest.raises(WeightsError, match="tokenizers/clip: it names no eos_token"):
        load_text(tmp_path, CPU, F32)


def test_several_transformers_want_a_name(tmp_path: Path) -> None:
    comfyui(tmp_path)
    other = kit.write(tmp_path / "diffusion_models" / "kontext.safetensors", FLUX_WEIGHTS)
    with pytest.raises(WeightsError, match=r"name one of them: flux1-dev.safetensors, kontext.safetensors"):
        load_flux(tmp_path, None, CPU, F32)
    assert same(load_flux(other, None, CPU, F32), FLUX_WEIGHTS)
