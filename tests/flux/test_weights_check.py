"""The check of a file or folder: what it is, what is wrong with it, what it would take; from headers, and quickly."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from actors.flux.check import check
from actors.flux.config import FLUX1_DEV, FLUX1_SCHNELL, FLUX1_VAE
from actors.flux.headers import read_header
from actors.flux.shapes import ClipSizes, T5Sizes, expected, is_linear
from tests.flux import containers_kit as kit
from tests.flux.samples import FLUX_WEIGHTS, all_in_one, bfl_file, comfyui, diffusers, without

GB = 10**9


def real_comfyui(
    folder: Path, transformer: str = "flux1-dev.safetensors", dtype: str = "BF16", t5: str = "F16"
) -> Path:
    """The whole of FLUX.1 dev in the sizes it has, without a byte of data on the disk."""
    kit.write_sparse(folder / "diffusion_models" / transformer, expected(FLUX1_DEV), dtype)
    kit.write_sparse(folder / "vae" / "ae.safetensors", expected(FLUX1_VAE), "F32")
    kit.write_sparse(folder / "text_encoders" / "t5xxl_fp16.safetensors", expected(T5Sizes()), t5)
    clip = {f"text_model.{name}": shape for name, shape in expected(ClipSizes()).items()}
    kit.write_sparse(folder / "text_encoders" / "clip_l.safetensors", clip, "F16")
    for name in ("t5", "clip"):
        (folder / "tokenizers" / name).mkdir(parents=True)
        (folder / "tokenizers" / name / "tokenizer_config.json").write_text("{}")
    return folder


def test_the_real_model_is_judged_in_well_under_two_seconds(tmp_path: Path) -> None:
    path = tmp_path / "flux1-dev.safetensors"
    nbytes = kit.write_sparse(path, expected(FLUX1_DEV), "BF16")
    assert nbytes > 23 * GB
    began = time.process_time()
    report = check(path)
    assert time.process_time() - began < 2
    assert (report.model, report.precision, report.container) == ("FLUX.1 dev", "bfloat16", "file")
    assert report.loads
    assert not report.complete
    assert report.absent == ("vae", "t5", "clip")
    assert report.parts[0].parameters == 11_901_408_320


def test_a_model_whose_every_layer_says_its_format_is_judged_as_quickly(tmp_path: Path) -> None:
    path, document, config = tmp_path / "flux1-dev.safetensors", b'{"format": "float8_e4m3fn"}', expected(FLUX1_DEV)
    layers = [name.removesuffix(".weight") for name, shape in config.items() if is_linear(name, shape)]
    shapes: dict[str, tuple[int, ...]] = dict(config)
    for layer in layers:
        shapes |= {f"{layer}.comfy_quant": (len(document),), f"{layer}.weight_scale": ()}
    nbytes = kit.write_sparse(path, shapes, "F8_E4M3")
    assert nbytes > 11 * GB
    tensors = read_header(path).tensors
    with path.open("r+b") as file:
        for layer in layers:
            file.seek(tensors[f"{layer}.comfy_quant"].start)
            file.write(document)
    began = time.process_time()
    report = check(path)
    assert time.process_time() - began < 2
    assert report.loads
    assert report.precision == "fp8 e4m3 scaled (new names)"


def test_the_whole_command_loads_no_torch(tmp_path: Path) -> None:
    kit.write_sparse(tmp_path / "flux1-dev.safetensors", expected(FLUX1_DEV), "BF16")
    code = (
        "import sys, pathlib; from actors.models import check_report; "
        "assert check_report(pathlib.Path(sys.argv[1]))['loads']; "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "flux1-dev.safetensors")], check=True, timeout=60)


@pytest.mark.parametrize(
    ("name", "config", "model"),
    [
        ("flux1-schnell.safetensors", FLUX1_SCHNELL, "FLUX.1 schnell"),
        ("flux1-dev-kontext_fp8_scaled.safetensors", FLUX1_DEV, "FLUX.1 Kontext dev"),
        ("mine.safetensors", FLUX1_DEV, "FLUX.1 dev"),
        ("lite.safetensors", replace(FLUX1_DEV, depth=8), "FLUX.1 of 8 + 38 blocks, width 3072"),
    ],
)
def test_models_are_told_apart(tmp_path: Path, name: str, config: object, model: str) -> None:
    assert isinstance(config, type(FLUX1_DEV))
    kit.write_sparse(tmp_path / name, expected(config), "F8_E4M3")
    report = check(tmp_path / name)
    assert (report.model, report.precision) == (model, "fp8 e4m3")


def test_a_whole_comfyui_folder_and_the_memory_it_takes(tmp_path: Path) -> None:
    report = check(real_comfyui(tmp_path))
    assert report.container == "comfyui"
    assert report.complete
    assert not report.problems
    needs, eight = report.memory_per_gpu["auto"], report.memory_per_gpu["fp8"]
    weights = 2 * sum(part.parameters for part in report.parts)
    assert needs == report.memory_per_gpu["bfloat16"], "nothing of it is in fp8"
    assert list(needs) == list(eight) == [1, 2, 4, 8]
    assert weights < needs[1] < weights + 4 * GB
    assert needs[1] > needs[2] > needs[4] > needs[8]
    # An eighth of the transformer and of T5, with what no plan shares, CLIP, the autoencoder and room to decode.
    assert 3.0 * GB + 1.4 * GB < needs[8] < 9 * GB
    assert 4 * GB < report.memory_streamed["auto"] < 8 * GB
    for gpus, nbytes in needs.items():
        assert 0.5 < (eight[gpus] - report.room_bytes) / (nbytes - report.room_bytes) < 0.6
    assert report.memory_streamed["fp8"] < report.memory_streamed["auto"] - 0.5 * GB


def test_a_card_of_24_gb_holds_a_whole_model_in_fp8(tmp_path: Path) -> None:
    """As its maker's users have it: the transformer scaled, T5 too; the file says so, and nobody need ask for it."""
    folder = real_comfyui(tmp_path, "flux1-dev_fp8_scaled.safetensors", "F8_E4M3", "F8_E4M3")
    report = check(folder)
    assert report.memory_per_gpu["auto"][1] < 21 * GB < 24 * GB < report.memory_per_gpu["bfloat16"][1]
    assert report.memory_per_gpu["fp8"][1] <= report.memory_per_gpu["auto"][1] * 1.01


@pytest.mark.parametrize(("write", "kind"), [(comfyui, "comfyui"), (diffusers, "diffusers"), (all_in_one, "file")])
def test_small_models_in_each_container_are_complete(tmp_path: Path, write: object, kind: str) -> None:
    assert callable(write)
    report = check(write(tmp_path))
    assert report.container == kind
    assert report.complete, report
    assert {part.part for part in report.parts} == {"transformer", "vae", "t5", "clip"}


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    comfyui(tmp_path)
    tensors = without(FLUX_WEIGHTS, "img_in.bias", "txt_in.weight") | {
        "surprise.weight": torch.zeros(1),
        "final_layer.linear.bias": torch.zeros(63),
    }
    kit.write(tmp_path / "diffusion_models" / "flux1-dev.safetensors", tensors)
    kit.write(tmp_path / "loras" / "style.safetensors", {"double_blocks.0.lora_A.weight": torch.zeros(1)})
    (tmp_path / "checkpoints").mkdir()
    torch.save({}, tmp_path / "checkpoints" / "old.ckpt")
    (tmp_path / "tokenizers" / "t5" / "tokenizer_config.json").unlink()
    report = check(tmp_path)
    assert not report.loads
    (flux,) = (part for part in report.parts if part.part == "transformer")
    assert flux.differences.missing == ("img_in.bias", "txt_in.weight")
    assert flux.differences.unexpected == ("surprise.weight",)
    assert flux.differences.wrong_shape == ("final_layer.linear.bias is [63], not [64]",)
    assert report.absent == ("tokenizer of t5",)
    assert "style.safetensors: a LoRA: known, but not rendered yet" in report.known[0]
    assert any("old.ckpt" in problem and "pickle" in problem for problem in report.problems)


def test_a_stray_bad_file_beside_a_whole_model_does_no_harm(tmp_path: Path) -> None:
    comfyui(tmp_path)
    (tmp_path / "vae" / "broken.safetensors").write_bytes(b"\1\2\3")
    report = check(tmp_path)
    assert report.complete
    assert "broken.safetensors" in report.problems[0]


def test_a_part_whose_shard_is_missing_does_not_load(tmp_path: Path) -> None:
    diffusers(tmp_path)
    (tmp_path / "transformer" / "diffusion_pytorch_model-00003-of-00003.safetensors").unlink()
    report = check(tmp_path)
    assert not report.loads
    assert "1 of 3 shards" in report.problems[0]


def test_a_missing_last_block_is_missed_where_a_config_counts_them(tmp_path: Path) -> None:
    last = [name for name in FLUX_WEIGHTS if name.startswith("single_blocks.2.")]
    bfl_file(tmp_path)
    kit.write(tmp_path / "flux1-dev.safetensors", without(FLUX_WEIGHTS, *last))
    assert len(check(tmp_path / "flux1-dev.safetensors").parts[0].differences.missing) == len(last)


@pytest.mark.parametrize("content", [None, b"", b"PK\3\4" + bytes(90), b"GGUF" + bytes(90)])
def test_whatever_lies_there_there_is_a_report(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.safetensors"
    if content is not None:
        path.write_bytes(content)
    report = check(path)
    assert not report.loads
    assert len(report.problems) + len(report.known) == 1
