"""The bytes of each rank as headers tell them, against what a rank allocates and against networks of the real size."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed import ProcessGroup
from transformers import T5Config, T5EncoderModel

from actors.cards import DEV
from actors.flux.check import check
from actors.flux.checkpoint import stored_part
from actors.flux.choice import report_part
from actors.flux.config import FLUX1_DEV, FLUX1_VAE, FluxConfig
from actors.flux.exchange import GangShape, Seat, cut_network
from actors.flux.memory import held_bytes
from actors.flux.model import Flux
from actors.flux.quant import Fp8, kept_in_fp8
from actors.flux.shapes import ClipSizes, T5Sizes, expected
from actors.flux.sharding import Place, kept_shapes, slices
from actors.flux.weights import load_flux, load_t5
from actors.weighing import kept, stored_in
from farm.config import PoolSpec
from tests.flux import containers_kit as kit
from tests.flux.test_weights_check import real_comfyui

FLUX = FluxConfig(
    vec_in_dim=16, context_in_dim=24, hidden_size=128, num_heads=8, depth=1, depth_single_blocks=2, axes_dim=(4, 6, 6)
)
T5 = T5Sizes(vocab_size=60, d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=8)
T5_WEIGHTS = kit.random_tensors(T5)
DEGREES = (1, 2, 4, 8)
SETTINGS: tuple[Fp8, ...] = ("never", "stored", "always")


@given(
    st.sampled_from([(8, 16), (12, 16), (24, 32)]),
    st.integers(1, 2),
    st.sampled_from([1, 2, 3, 4, 6, 8]),
    st.sampled_from(["float32", "bfloat16", "float16"]),
    st.sampled_from(["never", "always"]),
)
def test_the_bytes_of_all_ranks_are_the_whole_and_what_each_has_again(
    heads: tuple[int, int], depth: int, tensor: int, precision: str, fp8: Fp8
) -> None:
    count, width = heads
    flux = FluxConfig(
        hidden_size=count * width, num_heads=count, depth=depth, depth_single_blocks=depth, axes_dim=(width - 8, 4, 4)
    )
    t5 = T5Sizes(vocab_size=60, d_model=24, d_kv=8, d_ff=240, num_layers=depth, num_heads=count)
    for sizes in (flux, t5):
        if count % tensor:
            continue
        eight = kept_in_fp8(fp8, frozenset(), expected(sizes))
        whole = held_bytes(sizes, 1, precision, eight)
        places = [Place(rank, tensor) for rank in range(tensor)]
        shares = [kept_shapes(sizes, place) for place in places]
        again = [name for name, shape in expected(sizes).items() if slices(sizes, name, shape, places[0]) is None]
        scales = {name: 4 * expected(sizes)[name][0] for name in eight}
        wide = {name: (n - scales.get(name, 0)) // math.prod(expected(sizes)[name]) for name, n in whole.items()}
        # Ranks that share a weight by its columns have the scales of all of its rows.
        rows = {name: 4 * shares[0][name][0] for name in eight}
        ranks = [sum(math.prod(shape) * wide[name] + rows.get(name, 0) for name, shape in s.items()) for s in shares]
        assert ranks == [sum(held_bytes(sizes, tensor, precision, eight).values())] * tensor
        more = sum(tensor * rows[name] - scales[name] for name in eight if name not in again)
        assert sum(ranks) == sum(whole.values()) + (tensor - 1) * sum(whole[name] for name in again) + more


def test_a_network_that_cannot_be_shared_is_whole_on_each() -> None:
    assert held_bytes(T5, 3, "bfloat16") == held_bytes(T5, 1, "bfloat16")
    for sizes in (FLUX1_VAE, ClipSizes()):
        assert held_bytes(sizes, 8, "bfloat16") == held_bytes(sizes, 1, "bfloat16")


def seat(rank: int, tensor: int) -> Seat:
    """Nobody talks while weights are read, so that no group need stand."""
    group = cast("ProcessGroup", object())
    alone = Place(0, 1)
    return Seat(GangShape(tensor), Place(rank, tensor), group, alone, None, None, None)


def allocated(network: nn.Module) -> int:
    memories = {tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in network.parameters()}
    return sum(memories.values())


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("tensor", DEGREES)
def test_a_rank_allocates_what_the_plan_counts(tmp_path: Path, tensor: int, precision: str) -> None:
    """In wider numbers, in fp8 as far as the files have it (the transformer's alone), and in fp8 throughout."""
    dtype: torch.dtype = getattr(torch, precision)
    eight = kit.write(tmp_path / "flux.safetensors", kit.quantised(kit.random_tensors(FLUX), "old")[0])
    files = stored_part(eight, "transformer"), stored_part(kit.write(tmp_path / "t5.safetensors", T5_WEIGHTS), "t5")
    flux, t5 = map(report_part, files)
    totals = []
    for fp8 in SETTINGS:
        counted = [sum(part.held(tensor, precision, fp8).values()) for part in (replace(flux, sizes=FLUX), t5)]
        for rank in {0, tensor - 1}:
            mine = seat(rank, tensor) if tensor > 1 else None
            assert allocated(load_flux(files[0], FLUX, "cpu", dtype, mine, fp8)) == counted[0]
            assert allocated(load_t5(files[1], "cpu", dtype, mine, fp8)) == counted[1]
        totals.append(sum(counted))
    assert totals[0] > totals[1] > totals[2]


def on_meta(sizes: FluxConfig | T5Sizes, place: Place, eight: bool) -> int:
    """The bytes in bfloat16 of a network of this size, cut as ranks cut theirs, its linears in fp8 or not."""
    with torch.device("meta"):
        network = (
            Flux(sizes)
            if isinstance(sizes, FluxConfig)
            else T5EncoderModel(T5Config(**vars(sizes), feed_forward_proj="gated-gelu"))
        )
    cut_network(network, sizes, place, cast("ProcessGroup", object()))
    total = 2 * sum({id(tensor): tensor.numel() for tensor in network.parameters()}.values())
    linears = [module.weight for module in network.modules() if eight and isinstance(module, nn.Linear)]
    return total - sum(weight.numel() - 4 * len(weight) for weight in linears)


@pytest.mark.parametrize(
    ("dtype", "precision", "gigabytes"),
    [
        ("BF16", "bfloat16", [33.7, 17.3, 9.0, 4.9]),
        ("BF16", "auto", [33.7, 17.3, 9.0, 4.9]),
        ("F8_E4M3", "bfloat16", [33.7, 17.3, 9.0, 4.9]),
        ("F8_E4M3", "auto", [17.2, 9.0, 4.9, 2.8]),
    ],
)
def test_flux1_dev_at_its_size_is_counted_rank_by_rank(
    tmp_path: Path, dtype: str, precision: Any, gigabytes: list[float]
) -> None:
    """Headers alone on the one side, networks without memory on the other."""
    stored = stored_in(DEV, str(real_comfyui(tmp_path, dtype=dtype, t5=dtype)))
    assert stored.lacks == ""
    eight = dtype == "F8_E4M3" and precision == "auto"
    report = check(tmp_path)
    sums = []
    for tensor in DEGREES:
        held = kept(PoolSpec(model="flux1-dev", tensor=tensor, precision=precision, device="cuda"), stored)
        each = {part: sum(tensors.values()) for part, tensors in held.items()}
        assert each["transformer"] == on_meta(FLUX1_DEV, Place(tensor - 1, tensor), eight)
        assert each["t5"] == on_meta(T5Sizes(), Place(tensor - 1, tensor), eight)
        assert each["vae"] == 2 * sum(map(math.prod, expected(FLUX1_VAE).values()))
        assert each["clip"] == 2 * sum(map(math.prod, expected(ClipSizes()).values()))
        assert report.memory_per_gpu[precision][tensor] == sum(each.values()) + report.room_bytes
        sums.append(round(sum(each.values()) / 1e9, 1))
    assert sums == gigabytes


def test_flux1_dev_rounded_to_fp8_takes_half_whatever_the_file_has(tmp_path: Path) -> None:
    report = check(real_comfyui(tmp_path))
    weights = [report.memory_per_gpu["fp8"][ranks] - report.room_bytes for ranks in DEGREES]
    assert [round(nbytes / 1e9, 1) for nbytes in weights] == [17.3, 9.1, 4.9, 2.9]
