"""The catalogue, where its files are looked for, and a renderer made of them."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from actors import loading, models
from actors.cards import CARDS, DEV, KLEIN_4B, KONTEXT, SCHNELL, TINY
from actors.flux.check import check
from actors.flux.checkpoint import Checkpoint, stored_part
from actors.flux.config import FLUX1_DEV, FLUX1_VAE
from actors.flux.denoise import Denoiser
from actors.flux.offload import Setting
from actors.flux.quant import Fp8
from actors.flux.render import KONTEXT_SIZES, Renderer, RenderJob
from actors.flux.shapes import ClipSizes, T5Sizes, expected
from actors.flux.weights import load_vae
from actors.messages import Post
from actors.shard import load_shard
from actors.stages import Stage
from farm.errors import Fault, NotFound
from farm.job import CAUSES, Cause, Payer
from farm.ports import ModelCard
from farm.sizes import nearest_size
from tests.flux import containers_kit as kit
from tests.flux.samples import FLUX_WEIGHTS, T5_WEIGHTS, comfyui, diffusers
from tests.flux.test_weights_check import real_comfyui

CPU = loading.Load("cpu", torch.float32)
BF16 = loading.Load("cpu", torch.bfloat16)
JOB = RenderJob(prompt="w5 w7", seed=3, width=48, height=32, steps=2, guidance=2.0)


def held(renderer: Renderer) -> Denoiser:
    assert renderer.denoiser
    return renderer.denoiser


def test_no_card_promises_what_cannot_be_drawn() -> None:
    assert len(models.catalogue()) == len(CARDS)
    for card in CARDS:
        assert card.side % card.grid == 0
        assert card.min_side % card.grid == 0
        assert card.max_side % card.grid == 0
        assert card.min_pixels <= card.side**2 <= card.max_pixels
        assert 1 <= card.steps <= card.max_steps
        assert card.guidance <= card.max_guidance
        assert card.files
        for width, height in card.sizes:
            assert nearest_size(width, height, card) == (width, height)


def test_each_licence_asks_what_its_text_asks() -> None:
    asking = {card.name for card in CARDS if card.licence.asks_filter_or_review}
    assert asking == {"flux1-dev", "flux1-kontext-dev", "flux2-dev", "flux2-klein-9b"}
    for card in CARDS:
        assert card.licence.commercial_use is (card.name not in asking)
        assert card.licence.asks_acceptance is (card.name in asking)
        assert card.licence.url.startswith("https://")


def test_an_unknown_model_is_answered_with_the_nearest() -> None:
    with pytest.raises(NotFound, match="did you mean 'flux1-schnell'"):
        models.card_of("flux-schnell")


def weights_of(card: ModelCard, folder: Path) -> set[str]:
    return {path.name for each in models.locate(card, folder).sets for path in each.files}


def test_a_real_folder_holds_the_models_it_holds(tmp_path: Path) -> None:
    real_comfyui(tmp_path, "flux1-dev-kontext_fp8_scaled.safetensors", "F8_E4M3")
    ready = {row["name"]: row["ready"] for row in models.models_table(tmp_path) if row["name"] != "tiny"}
    assert ready == {
        "flux1-schnell": False,
        "flux1-dev": False,
        "flux1-kontext-dev": True,
        "flux2-dev": False,
        "flux2-klein-9b": False,
        "flux2-klein-4b": False,
    }
    assert models.files_present(DEV, tmp_path)["transformer"] is False
    assert weights_of(KONTEXT, tmp_path) == {
        "flux1-dev-kontext_fp8_scaled.safetensors",
        "ae.safetensors",
        "t5xxl_fp16.safetensors",
        "clip_l.safetensors",
    }
    with pytest.raises(Fault, match="flux1-dev lacks transformer: not in"):
        models.locate(DEV, tmp_path)


def test_of_two_precisions_the_more_precise_is_taken(tmp_path: Path) -> None:
    real_comfyui(tmp_path, "flux1-dev-a_fp8.safetensors", "F8_E4M3")
    write_dev(tmp_path, "flux1-dev-b")
    assert transformer(tmp_path) == "flux1-dev-b.safetensors"


def write_dev(folder: Path, name: str) -> None:
    kit.write_sparse(folder / "diffusion_models" / f"{name}.safetensors", expected(FLUX1_DEV), "BF16")


def transformer(folder: Path) -> str:
    return models.locate(DEV, folder).transformer.files[0].name


def test_of_several_transformers_the_one_with_the_usual_name_is_taken(tmp_path: Path) -> None:
    real_comfyui(tmp_path, "acorn_tune.safetensors")
    assert transformer(tmp_path) == "acorn_tune.safetensors"
    write_dev(tmp_path, "birch_tune")
    with pytest.raises(Fault, match=r"acorn_tune.safetensors, birch_tune.safetensors; call .* flux1-dev.safetensors"):
        models.locate(DEV, tmp_path)
    assert models.files_present(DEV, tmp_path)["transformer"] is False
    write_dev(tmp_path, "flux1-dev_bf16")
    assert transformer(tmp_path) == "flux1-dev_bf16.safetensors"
    write_dev(tmp_path, "flux1-dev-acorn")
    write_dev(tmp_path, "flux1-dev")
    assert transformer(tmp_path) == "flux1-dev.safetensors"


@pytest.mark.parametrize(
    ("first", "others", "taken"),
    [
        ("flux1-kontext-dev", ["flux1-dev-kontext_fp8_scaled"], "flux1-kontext-dev"),
        ("flux1-kontext-dev", ["flux1-kontext-dev-fp8-e4m3fn"], "flux1-kontext-dev"),
        ("flux1-dev-kontext", ["my-kontext", "a-kontext"], "flux1-dev-kontext"),
        ("a-kontext", ["flux1-kontext-dev-fp8-e4m3fn"], "flux1-kontext-dev-fp8-e4m3fn"),
    ],
)
def test_kontext_has_its_makers_name_and_comfyuis(tmp_path: Path, first: str, others: list[str], taken: str) -> None:
    real_comfyui(tmp_path, f"{first}.safetensors")
    for name in others:
        dtype = "F8_E4M3" if "fp8" in name else "BF16"
        kit.write_sparse(tmp_path / "diffusion_models" / f"{name}.safetensors", expected(FLUX1_DEV), dtype)
    assert models.locate(KONTEXT, tmp_path).transformer.files[0].stem == taken


def test_of_parts_that_only_their_names_tell_apart_the_usual_ones_are_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stable Diffusion 3's autoencoder has the very shapes of FLUX.1's, and other colours."""
    from farm.cli import _run

    folder = real_comfyui(tmp_path / "models")
    clip = {f"text_model.{name}": shape for name, shape in expected(ClipSizes()).items()}
    kit.write_sparse(folder / "vae" / "SD3_vae.safetensors", expected(FLUX1_VAE), "F32")
    kit.write_sparse(folder / "text_encoders" / "ViT-L-14-TEXT-detail.safetensors", clip, "F16")
    kit.write_sparse(folder / "text_encoders" / "t5_other.safetensors", expected(T5Sizes()), "F16")
    names = ["flux1-dev", "ae", "t5xxl_fp16", "clip_l"]
    assert weights_of(DEV, folder) == {f"{name}.safetensors" for name in names}
    assert stored_part(folder, "vae").files[0].stem == "ae"
    assert [Path(*files).stem for files in check(folder).taken.values()] == names
    said = (
        "diffusion_models/flux1-dev.safetensors, vae/ae.safetensors, "
        "text_encoders/t5xxl_fp16.safetensors, text_encoders/clip_l.safetensors"
    )
    assert _run(["models", "check", str(folder)]) == 0
    assert f"of these it would draw with {said}\n" in capsys.readouterr().out
    monkeypatch.setenv("FARM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FARM_MODELS", str(folder))
    assert _run(["models", "ls"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert f"flux1-dev draws with {said}" in listed
    assert any(line.startswith("flux1-schnell lacks transformer: ") for line in listed)
    assert any("it needs diffusion_models/flux1-kontext-dev.safetensors, vae/ae" in line for line in listed)
    (folder / "vae" / "ae.safetensors").rename(folder / "vae" / "Flux_VAE.safetensors")
    assert stored_part(folder, "vae").files[0].stem == "Flux_VAE"


def test_what_is_loaded_of_a_folder_is_what_its_check_takes(tmp_path: Path) -> None:
    comfyui(tmp_path)
    kit.write(tmp_path / "vae" / "aa_sdxl.safetensors", kit.random_tensors(replace(kit.VAE, z_channels=4)))
    assert check(tmp_path).taken["vae"] == (str(tmp_path / "vae" / "ae.safetensors"),)
    assert load_vae(tmp_path, None, "cpu", torch.float32).config == kit.VAE


def write_clip_g(folder: Path) -> None:
    """The second text encoder of SDXL and SD3, which lies beside FLUX.1's in many folders."""
    sizes = ClipSizes(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20)
    shapes = {f"text_model.{name}": shape for name, shape in expected(sizes).items()}
    kit.write_sparse(folder / "text_encoders" / "clip_g.safetensors", shapes, "F16")


def test_of_several_parts_those_that_fit_the_transformer_are_taken(tmp_path: Path) -> None:
    real = real_comfyui(tmp_path)
    write_clip_g(real)
    (real / "text_encoders" / "t5xxl_fp16.safetensors").unlink()
    kit.write_sparse(real / "text_encoders" / "t5xxl_fp8_e4m3fn.safetensors", expected(T5Sizes()), "F8_E4M3")
    umt5 = expected(T5Sizes(vocab_size=256384))  # of Wan: as wide as T5, with positions of its own in every block
    umt5 |= {f"encoder.block.{n}.layer.0.SelfAttention.relative_attention_bias.weight": (32, 64) for n in range(24)}
    kit.write_sparse(real / "text_encoders" / "a_umt5_xxl_fp16.safetensors", umt5, "F16")
    (real / "vae" / "ae.safetensors").rename(real / "vae" / "flux_vae.safetensors")
    sd = expected(replace(FLUX1_VAE, z_channels=4))
    kit.write_sparse(real / "vae" / "diffusion_pytorch_model.safetensors", sd, "F32")
    assert weights_of(DEV, real) == {
        "flux1-dev.safetensors",
        "flux_vae.safetensors",
        "t5xxl_fp8_e4m3fn.safetensors",
        "clip_l.safetensors",
    }
    report = check(real)
    assert report.complete
    assert [Path(problem.split(":")[0]).name for problem in report.problems] == [
        "a_umt5_xxl_fp16.safetensors",
        "clip_g.safetensors",
        "diffusion_pytorch_model.safetensors",
    ]


def test_a_part_that_fits_no_transformer_is_missing_and_the_reason_told(tmp_path: Path) -> None:
    real = real_comfyui(tmp_path)
    write_clip_g(real)
    (real / "text_encoders" / "clip_l.safetensors").unlink()
    assert models.files_present(DEV, real)["clip"] is False
    with pytest.raises(Fault, match=r"lacks clip.*clip_g.safetensors: gives 1280 channels.* takes 768"):
        models.locate(DEV, real)
    report = check(real)
    assert not report.loads
    assert "gives 1280 channels" in report.problems[0]


def test_what_is_missing_is_the_environments_fault_and_named(tmp_path: Path) -> None:
    assert CAUSES[Cause.WEIGHTS_MISSING] is Payer.ENVIRONMENT
    (tmp_path / "file").write_bytes(b"no folder")
    for folder in (None, tmp_path, tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(Fault) as caught:
            loading.load_renderer(SCHNELL, folder, CPU)
        assert caught.value.cause is Cause.WEIGHTS_MISSING
        for need in ("transformer", "tokenizers/clip", "flux1-schnell.safetensors"):
            assert need in str(caught.value)
        assert models.lacking(SCHNELL, folder) == caught.value.detail
    assert models.lacking(TINY, None) == ""
    with pytest.raises(Fault, match="not rendered yet"):
        loading.load_renderer(KLEIN_4B, tmp_path, CPU)


def small(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(models, "TINY_FOLDER", folder)


def picture(folder: Path, monkeypatch: pytest.MonkeyPatch, offload: Setting = "auto", fp8: Fp8 = "never") -> np.ndarray:
    small(monkeypatch, folder)
    renderer = loading.load_renderer(TINY, None, replace(CPU, offload=offload, fp8=fp8))
    picture: np.ndarray = renderer.render([JOB])[0]
    return picture


def test_a_model_draws_the_same_from_every_container_and_streamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = picture(comfyui(tmp_path / "a"), monkeypatch)
    assert whole.shape == (32, 48, 3)
    assert whole.std() > 1
    assert np.array_equal(picture(diffusers(tmp_path / "b"), monkeypatch), whole)
    assert np.array_equal(picture(tmp_path / "a", monkeypatch, "always"), whole)


def test_fp8_files_draw_the_same_widened_and_kept_and_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comfyui(tmp_path)
    for path, weights in (("diffusion_models/flux1-dev", FLUX_WEIGHTS), ("text_encoders/t5xxl_fp16", T5_WEIGHTS)):
        kit.write(tmp_path / f"{path}.safetensors", kit.quantised(weights, "old")[0])
    wide = picture(tmp_path, monkeypatch)
    assert wide.std() > 1
    assert np.array_equal(picture(tmp_path, monkeypatch, fp8="stored"), wide)
    assert np.array_equal(picture(tmp_path, monkeypatch, "always", "stored"), wide)


@pytest.mark.parametrize(("precision", "kept"), [("auto", False), ("fp8", True), ("bfloat16", False)])
def test_a_rank_on_cpus_keeps_fp8_where_its_pool_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, kept: bool
) -> None:
    small(monkeypatch, comfyui(tmp_path))
    path = tmp_path / "diffusion_models" / "flux1-dev.safetensors"
    kit.write(path, kit.quantised(FLUX_WEIGHTS, "new")[0])
    shard = load_shard(Post(TINY, "", "tiny", "", "cpu", precision, "never", load_s=60.0))
    flux = held(cast("Renderer", shard.renderer)).flux
    assert (torch.float8_e4m3fn in {parameter.dtype for parameter in flux.parameters()}) is kept


def test_a_model_in_a_diffusers_folder_among_others_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    diffusers(tmp_path / "FLUX.1-small")
    (tmp_path / "other").mkdir()
    small(monkeypatch, tmp_path)
    assert models.locate(TINY, None).transformer.files[0].parent.parent.name == "FLUX.1-small"


def test_check_takes_the_place_in_a_folder_that_the_farm_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face's cache, whole; one model of it; and models beside a ComfyUI folder's own files."""
    snapshot = diffusers(tmp_path / "hub" / "models--maker--FLUX.1" / "snapshots" / "ab12")
    for path in (snapshot, snapshot.parent.parent, tmp_path / "hub"):
        report = check(path)
        assert report.complete
        assert report.path == str(snapshot)
    kit.write(tmp_path / "hub" / "vae" / "ae.safetensors", kit.random_tensors(kit.VAE))
    assert check(tmp_path / "hub").complete
    small(monkeypatch, tmp_path / "hub")
    assert models.locate(TINY, None).transformer.files[0].parent.parent == snapshot
    (snapshot / "text_encoder" / "model.safetensors").unlink()
    assert check(tmp_path / "hub").absent == ("clip",)


def test_a_file_is_sound_without_the_rest_of_its_model_and_a_folder_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from farm.cli import _run

    write_dev(tmp_path, "flux1-dev")
    file = tmp_path / "diffusion_models" / "flux1-dev.safetensors"
    assert _run(["models", "check", str(file)]) == 0
    said = capsys.readouterr().out
    assert "would load: yes; all parts there: no" in said
    assert "memory needed per GPU for diffusion_models/flux1-dev.safetensors, " in said
    assert _run(["models", "check", str(tmp_path)]) == 1
    kit.write_sparse(
        file, {name: shape for name, shape in expected(FLUX1_DEV).items() if name != "img_in.bias"}, "BF16"
    )
    assert _run(["models", "check", str(file)]) == 1


def test_a_file_that_does_not_fit_is_a_fault_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comfyui(tmp_path)
    kit.write(tmp_path / "vae" / "ae.safetensors", {"decoder.conv_in.weight": torch.zeros(16, 16, 3, 3)})
    small(monkeypatch, tmp_path)
    with pytest.raises(Fault, match=r"missing: encoder\.conv_in"):
        loading.load_renderer(TINY, None, CPU)


def test_schnell_is_not_shifted_and_kontext_resizes_its_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch, comfyui(tmp_path))
    files = models.locate(TINY, None)
    made = {}
    for card in (SCHNELL, KONTEXT, TINY):
        renderer = loading.assemble(card, files, CPU)
        assert renderer.encoder
        made[card.name] = held(renderer).shift, renderer.encoder.max_text, renderer.encoder.kontext_sizes
    assert made == {
        "flux1-schnell": (False, 256, None),
        "flux1-kontext-dev": (True, 512, KONTEXT_SIZES),
        "tiny": (True, 40, None),
    }


def test_reports_and_tables_are_json(tmp_path: Path) -> None:
    comfyui(tmp_path)
    report = json.loads(json.dumps(models.check_report(tmp_path)))
    assert report["complete"] is True
    assert set(report["memory_per_gpu"]) == set(report["memory_streamed"]) == {"auto", "bfloat16", "fp8"}
    assert all(set(needs) == {"1", "2", "4", "8"} for needs in report["memory_per_gpu"].values())
    assert json.loads(json.dumps(models.models_table(tmp_path)))[0]["name"] == "tiny"


def test_the_catalogue_costs_no_torch() -> None:
    code = "import sys, actors.models as m; m.models_table(None); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_cards_are_values() -> None:
    assert replace(DEV) == DEV
    with pytest.raises(AttributeError):
        DEV.steps = 3  # type: ignore[misc]


def test_a_checked_folder_is_told_in_words_that_a_person_reads(capsys: pytest.CaptureFixture[str]) -> None:
    from farm.cli import _run

    tiny = Path(models.__file__).parent / "tiny" / "models"
    assert _run(["models", "check", str(tiny)]) == 0
    said = capsys.readouterr().out
    assert "FLUX.1 of 2 + 4 blocks" in said
    assert "memory needed per GPU for diffusion_models/tiny-flux.safetensors, vae/ae.safetensors, " in said
    assert "clip_l.safetensors, 38.3 MB of it to work in, by precision and number of GPUs:\n" in said
    assert re.search(
        r"\nprecision +1 GPU +2 GPUs +4 GPUs +8 GPUs +blocks streamed\nauto +52.1 MB .*\n.*\nfp8 +47.0 MB", said
    )
    assert "would load: yes; all parts there: yes" in said
    assert "{" not in said
    assert _run(["models", "check", str(tiny / "vae")]) == 1
    assert "absent: transformer" in capsys.readouterr().out


def test_the_tiny_model_is_in_float32_whatever_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, comfyui(tmp_path))
    assert held(loading.load_renderer(TINY, None, BF16)).dtype == torch.float32
    files = models.locate(TINY, None)
    assert held(loading.assemble(DEV, files, BF16)).dtype == torch.bfloat16


def known(folder: Path, monkeypatch: pytest.MonkeyPatch) -> loading.Known:
    small(monkeypatch, folder)
    return loading.load_known(TINY, None, CPU)


@pytest.mark.parametrize("container", [comfyui, diffusers])
def test_whatever_changes_the_picture_changes_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, container: Callable[[Path], Path]
) -> None:
    first = known(container(tmp_path / "a"), monkeypatch)
    assert known(container(tmp_path / "b"), monkeypatch).weights == first.weights
    assert {path.suffix for path in first.files} == {".json", ".safetensors"}
    assert len([path for path in first.files if path.name == "tokenizer.json"]) == 2
    for path in first.files:
        whole = path.read_bytes()
        path.write_bytes(whole + b" " if path.suffix == ".json" else whole[:-1] + bytes([whole[-1] ^ 1]))
        assert known(tmp_path / "a", monkeypatch).weights != first.weights
        path.write_bytes(whole)
    (tmp_path / "a" / "loras").mkdir()
    (tmp_path / "a" / "loras" / "x.safetensors").write_bytes(b"no part of it")
    assert known(tmp_path / "a", monkeypatch).weights == first.weights


@pytest.mark.parametrize("name", ["vae/ae.safetensors", "config.json", "tokenizers/t5/tokenizer.json"])
def test_a_file_that_changes_while_it_is_loaded_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = comfyui(tmp_path) / name
    load = loading.load_renderer

    def interrupted(*args: Any) -> Any:
        renderer, found = load(*args), path.stat()
        path.write_bytes(path.read_bytes().swapcase())
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))  # as copying tools do
        return renderer

    monkeypatch.setattr(loading, "load_renderer", interrupted)
    with pytest.raises(Fault, match=f"{path.name} changed while tiny was loaded") as caught:
        known(tmp_path, monkeypatch)
    assert caught.value.cause is Cause.WEIGHTS_MISSING


def test_stages_apart_hold_their_own_parts_and_draw_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch, comfyui(tmp_path))
    edit = replace(JOB, prompt="w9", seed=4, reference=Image.new("RGB", (40, 24), (200, 30, 90)))
    whole = loading.load_known(TINY, None, CPU)
    parts = {stage: loading.load_known(TINY, None, replace(CPU, stages=(stage,))) for stage in Stage}
    assert {part.weights for part in parts.values()} == {whole.weights}
    assert {part.files for part in parts.values()} == {whole.files}
    for jobs in ([JOB, replace(JOB, seed=9)], [edit]):
        made: list[Any] = []
        for part in parts.values():
            made = part.renderer.render(jobs, given=made)
        for one, other in zip(made, whole.renderer.render(jobs), strict=True):
            assert np.array_equal(one, other)
    stages = {stage: part.renderer for stage, part in parts.items()}
    assert [bool(one.encoder) for one in stages.values()] == [True, False, False]
    assert [bool(one.denoiser) for one in stages.values()] == [False, True, False]
    assert [bool(one.decoder) for one in stages.values()] == [False, False, True]


@pytest.mark.parametrize(
    ("stages", "read"),
    [
        ((Stage.ENCODE,), {"t5xxl_fp16", "clip_l", "ae"}),
        ((Stage.DENOISE,), {"flux1-dev"}),
        ((Stage.DECODE,), {"ae"}),
        ((Stage.DENOISE, Stage.DECODE), {"flux1-dev", "ae"}),
    ],
)
def test_no_tensor_is_read_that_the_stages_do_not_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stages: tuple[Stage, ...], read: set[str]
) -> None:
    small(monkeypatch, comfyui(tmp_path))
    seen: set[str] = set()
    read_into = Checkpoint.read_into

    def reading(self: Checkpoint, *args: Any) -> None:
        seen.update(path.stem for path in self.stored.files)
        read_into(self, *args)

    monkeypatch.setattr(Checkpoint, "read_into", reading)
    loading.load_renderer(TINY, None, replace(CPU, stages=stages))
    assert seen == read


def test_a_folder_without_weights_is_told_what_was_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from farm.cli import _run

    (tmp_path / "notes.txt").write_text("no weights")
    assert _run(["models", "check", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    expected = f"no weights found in {tmp_path}; expected diffusion_models/, text_encoders/, vae/"
    assert said.splitlines()[0] == expected
    assert "memory" not in said
    assert "0.0 MB" not in said


def test_a_file_that_cannot_be_read_is_told_below_the_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from farm.cli import _run

    monkeypatch.setenv("FARM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FARM_MODELS", str(tmp_path))
    bad = tmp_path / "diffusion_models" / "flux1-dev.safetensors"
    bad.parent.mkdir()
    bad.write_bytes(b"no weights at all")
    assert _run(["models", "ls"]) == 0
    assert f"farm: not used: {bad}: " in capsys.readouterr().err
    monkeypatch.setenv("FARM_MODELS", str(tmp_path / "nope"))
    assert _run(["models", "ls"]) == 0
    assert f"FARM_MODELS names no folder {tmp_path}/nope" in capsys.readouterr().err
