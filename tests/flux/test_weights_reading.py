"""Reading tensors: shapes, slices, windows, memory."""

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from actors.flux import checkpoint as checkpoint_module
from actors.flux.checkpoint import open_checkpoint
from actors.flux.config import FLUX1_DEV, FLUX1_SCHNELL, FLUX1_VAE, FluxConfig, VaeConfig
from actors.flux.model import Flux
from actors.flux.shapes import ClipSizes, Slice, T5Sizes, expected
from actors.flux.vae import AutoEncoder
from actors.flux.weights import WeightsError, load_flux, weights_sha256
from tests.flux import containers_kit as kit
from tests.flux.samples import CPU, F32, FLUX_WEIGHTS, bfl_file, diffusers, same


def test_the_tables_of_shapes_are_those_of_the_networks() -> None:
    with torch.device("meta"):
        for config in (FLUX1_DEV, FLUX1_SCHNELL, kit.FLUX, replace(kit.FLUX, mlp_ratio=3.0, in_channels=16)):
            assert shapes_of(Flux(config)) == expected(config)
        for vae in (FLUX1_VAE, kit.VAE, VaeConfig(ch=16, ch_mult=(1, 1, 3), num_res_blocks=3, norm_groups=8)):
            assert shapes_of(AutoEncoder(vae)) == expected(vae)


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def test_sizes_of_text_encoders_are_the_released_ones_by_default() -> None:
    assert sum(len(expected(sizes)) for sizes in (T5Sizes(), ClipSizes())) == 219 + 196


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
    torch.zeros(8).float().bfloat16().to(torch.float8_e4m3fn)
    before = peak()
    model = load_flux(Path(sys.argv[1]), config, "cpu", torch.bfloat16, fp8=sys.argv[3])
    kept = sum(tensor.nbytes for tensor in model.parameters())
    print(json.dumps([kept, peak() - before]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("dtype", "fp8"),
    [
        ("BF16", "never"),
        ("F32", "never"),
        pytest.param("F8_E4M3", "never", marks=pytest.mark.slow),
        ("F8_E4M3", "stored"),
        ("BF16", "always"),
    ],
)
def test_loading_holds_hardly_more_than_it_keeps(tmp_path: Path, dtype: str, fp8: str) -> None:
    """Peak resident memory, mapped pages included, in a process of its own: a model of some 300 MB in bfloat16."""
    config = replace(FLUX1_DEV, hidden_size=1024, num_heads=8, depth=2, depth_single_blocks=4, context_in_dim=64)
    path = tmp_path / "flux.safetensors"
    kit.write_sparse(path, expected(config), dtype)
    values = json.dumps({name: value for name, value in vars(config).items() if name != "axes_dim"})
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURE), str(path), values, fp8],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    kept, peak = json.loads(child.stdout)
    assert kept > (250_000_000 if fp8 == "never" else 125_000_000)
    assert kept < peak < 1.2 * kept
