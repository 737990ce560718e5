import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from farm.errors import BadInput, Fault
from farm.job import Cause
from safety.clip import BATCH, CUTTERS, Encoder, load_encoder, unit, views
from safety.gate import ClipGate
from safety.places import CONFIG, TINY
from tests.safety.conftest import flat, some

WEIGHTS = "open_clip_model.safetensors"
sides = st.integers(1, 2000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "clip"))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Random weights of a small ViT with open_clip's own tokenizer."""
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    config = {"model_cfg": {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}}
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(config))
    model = open_clip.CLIP(**config["model_cfg"])
    save_file(model.state_dict(), folder / WEIGHTS)
    return folder


@given(sides, sides)
def test_views_lie_within_and_leave_nothing_out(width: int, height: int) -> None:
    found = views(width, height)
    assert (found[0].name, found[0].box) == ("whole", (0, 0, width, height))
    assert len({view.name for view in found}) == len(found)
    for left, top, right, bottom in (view.box for view in found):
        assert -1e-6 <= left < right <= width + 1e-6
        assert -1e-6 <= top < bottom <= height + 1e-6


@given(st.integers(90, 1200), st.integers(90, 1200), st.floats(0, 1), st.floats(0, 1))
def test_every_small_thing_is_whole_in_some_tile(width: int, height: int, across: float, down: float) -> None:
    side = min(width, height) / 3
    left, top = across * (width - side), down * (height - side)
    tiles = [view.box for view in views(width, height) if view.name.startswith("tile")]
    right, bottom, slack = left + side, top + side, 1e-6
    held = [box[0] <= left + slack and box[1] <= top + slack and right <= box[2] + slack for box in tiles]
    assert any(fits and bottom <= box[3] + slack for fits, box in zip(held, tiles, strict=True))


def test_the_bundled_encoder_is_small_and_gives_unit_vectors(gate: ClipGate) -> None:
    assert sum(path.stat().st_size for path in TINY.iterdir()) < 8 << 20
    rows = gate.encoder().encode_frames([some("red", "circle"), flat((9, 9, 9))])
    assert [len(one) for one in rows] == [5, len(views(96, 64))]
    torch.testing.assert_close(torch.cat(rows).norm(dim=1), torch.ones(sum(map(len, rows))))
    assert gate.encoder().encode_frames([]) == []


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (96, 2048), (700, 96)])
def test_a_picture_of_any_form_goes_through_in_batches(
    gate: ClipGate, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []

    def counted(self: Encoder, some: Sequence[Any]) -> Tensor:
        passes.append(len(some))
        return encode(self, some)

    encode = Encoder._encode_pixels
    monkeypatch.setattr(Encoder, "_encode_pixels", counted)
    wanted = len(views(*size))
    (rows,) = gate.encoder().encode_frames([flat((9, 9, 9), size)])
    assert rows.shape == (wanted, 64)
    assert rows.isfinite().all()
    assert sum(passes) == wanted
    assert max(passes) == min(wanted, BATCH)


def test_beside_a_gpu_views_are_cut_by_several_threads_and_are_the_same(gate: ClipGate) -> None:
    frames = [some("red", "circle"), some("blue", "star", 2)]
    encoder = load_encoder()
    with ThreadPoolExecutor(CUTTERS) as threads:
        encoder._map = threads.map
        for ours, theirs in zip(encoder.encode_frames(frames), gate.encoder().encode_frames(frames), strict=True):
            assert torch.equal(ours, theirs)


def test_texts_are_encoded_once_and_in_order(gate: ClipGate) -> None:
    encoder = gate.encoder()
    first = encoder.encode_texts(["a red circle", "a blue star", "a red circle"])
    assert torch.equal(first[0], first[2])
    assert torch.equal(encoder.encode_texts(["a blue star"])[0], first[1])
    assert not torch.allclose(first[0], first[1])


def test_a_row_of_zeros_becomes_nan_not_zeros() -> None:
    assert unit(torch.zeros(1, 4)).isnan().all()


def test_the_fingerprint_is_of_the_contents_not_the_place(folder: Path, gate: ClipGate) -> None:
    assert load_encoder(str(folder)).fingerprint == gate.encoder().fingerprint
    assert load_encoder(f"local-dir:{folder}").fingerprint == gate.encoder().fingerprint


@pytest.mark.parametrize("name", sorted(path.name for path in TINY.iterdir()))
def test_any_file_that_changes_changes_the_fingerprint(folder: Path, gate: ClipGate, name: str) -> None:
    path = folder / name
    if name.endswith(".safetensors"):
        weights = load_file(path)
        weights["visual.conv1.weight"][0, 0, 0, 0] += 1e-3
        save_file(weights, path, metadata={"format": "pt"})
    else:
        path.write_text(json.dumps(json.loads(path.read_text()), indent=1) + "\n\n")
    assert load_encoder(str(folder)).fingerprint != gate.encoder().fingerprint


def test_another_preprocessing_is_another_fingerprint(folder: Path, gate: ClipGate) -> None:
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["mean"] = [0.4, 0.5, 0.5]
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    assert load_encoder(str(folder)).fingerprint != gate.encoder().fingerprint


def test_open_clip_s_own_vocabulary_counts_where_a_folder_has_no_tokenizer(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_encoder(str(small)).fingerprint
    other = tmp_path / "vocabulary"
    other.write_text("another one")
    monkeypatch.setattr("safety.clip.BUNDLED", other)
    assert load_encoder(str(small)).fingerprint != before


def test_name_and_file_is_an_encoder_whose_fingerprint_is_of_weights_form_and_vocabulary(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A form of the test's own, by the way that open_clip has for such."""
    config = json.loads((small / CONFIG).read_text())["model_cfg"]
    for name in ("small-test", "small-test-gelu"):
        form = config | {"quick_gelu": name.endswith("gelu")}
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, form)
    weights = shutil.copy(small / WEIGHTS, tmp_path / "weights.safetensors")
    first = load_encoder(f"small-test@{weights}")
    (rows,) = first.encode_frames([some("red", "circle")])
    (same,) = load_encoder(str(small)).encode_frames([some("red", "circle")])
    assert torch.equal(rows, same)
    found = {first.fingerprint, load_encoder(f"small-test-gelu@{weights}").fingerprint}
    monkeypatch.setattr("safety.clip.BUNDLED", small / CONFIG)
    found.add(load_encoder(f"small-test@{weights}").fingerprint)
    changed = load_file(weights)
    changed["logit_scale"] += 1e-3
    save_file(changed, weights)
    found.add(load_encoder(f"small-test@{weights}").fingerprint)
    assert len(found) == 4


def test_a_tokenizer_that_would_be_fetched_unseen_is_refused() -> None:
    with pytest.raises(BadInput, match="tokenizer of ViT-B-16-SigLIP"):
        load_encoder(f"ViT-B-16-SigLIP@{TINY / WEIGHTS}")


def test_a_hub_s_name_is_the_folder_that_was_fetched_of_it(
    folder: Path, gate: ClipGate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network, what was fetched before."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(Fault, match="ours/clip could not be fetched") as caught:
        load_encoder("hf-hub:ours/clip")
    assert caught.value.cause is Cause.GATE_DOWN
    fetched = tmp_path / "models--ours--clip"
    shutil.copytree(folder, fetched / "snapshots" / ("0" * 40))
    (fetched / "refs").mkdir()
    (fetched / "refs" / "main").write_text("0" * 40)
    assert load_encoder("hf-hub:ours/clip").fingerprint == gate.encoder().fingerprint


@pytest.mark.parametrize("missing", ["open_clip_config.json", "open_clip_model.safetensors"])
def test_a_folder_without_its_model_is_a_gate_that_is_away(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(Fault, match=r"needs open_clip_config\.json") as caught:
        load_encoder(str(folder))
    assert caught.value.cause is Cause.GATE_DOWN


def test_a_pickle_beside_the_weights_is_refused(folder: Path) -> None:
    (folder / "open_clip_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(BadInput, match="pickle"):
        load_encoder(str(folder))


def test_name_and_file_wants_a_known_name_and_safetensors(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="ViT-B-32"):
        load_encoder("ViT-B-322@x.safetensors")
    with pytest.raises(BadInput, match="not safetensors"):
        load_encoder("ViT-B-32@x.bin")
    with pytest.raises(Fault, match="no file") as caught:
        load_encoder(f"ViT-B-32@{tmp_path}/x.safetensors")
    assert caught.value.cause is Cause.GATE_DOWN
