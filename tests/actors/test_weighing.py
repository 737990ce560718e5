"""The bytes of each rank as headers tell them, against what a rank allocates and against networks of the real size."""

from __future__ import annotations

import math
from pathlib import Path
from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.distributed import ProcessGroup
from transformers import T5Config, T5EncoderModel

from actors.cards import DEV
from actors.flux.checkpoint import stored_part
from actors.flux.config import FLUX1_DEV, FLUX1_VAE, FluxConfig
from actors.flux.exchange import GangShape, Seat, cut_network
from actors.flux.model import Flux
from actors.flux.shapes import ClipSizes, T5Sizes, expected
from actors.flux.sharding import Place, kept_shapes, slices
from actors.flux.weights import load_flux, load_t5
from actors.weighing import held_bytes, kept, stored_in
from farm.config import PoolSpec
from tests.flux import containers_kit as kit
from tests.flux.test_weights_check import real_comfyui

FLUX = FluxConfig(
    vec_in_dim=16, context_in_dim=24, hidden_size=128, num_heads=8, depth=1, depth_single_blocks=2, axes_dim=(4, 6, 6)
)
T5 = T5Sizes(vocab_size=60, d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=8)
DEGREES = (1, 2, 4, 8)


@given(
    st.sampled_from([(8, 16), (12, 16), (24, 32)]),
    st.integers(1, 2),
    st.sampled_from([1, 2, 3, 4, 6, 8]),
    st.sampled_from(["float32", "bfloat16", "float16"]),
)
def test_the_bytes_of_all_ranks_are_the_whole_and_what_each_has_again(
    heads: tuple[int, int], depth: int, tensor: int, precision: str
) -> None:
    count, width = heads
    flux = FluxConfig(
        hidden_size=count * width, num_heads=count, depth=depth, depth_single_blocks=depth, axes_dim=(width - 8, 4, 4)
    )
    t5 = T5Sizes(vocab_size=60, d_model=24, d_kv=8, d_ff=240, num_layers=depth, num_heads=count)
    for sizes in (flux, t5):
        if count % tensor:
            continue
        whole = held_bytes(sizes, 1, precision)
        places = [Place(rank, tensor) for rank in range(tensor)]
        shares = [kept_shapes(sizes, place) for place in places]
        again = [name for name, shape in expected(sizes).items() if slices(sizes, name, shape, places[0]) is None]
        wide = {name: nbytes // math.prod(expected(sizes)[name]) for name, nbytes in whole.items()}
        ranks = [sum(math.prod(shape) * wide[name] for name, shape in share.items()) for share in shares]
        assert ranks == [sum(held_bytes(sizes, tensor, precision).values())] * tensor
        assert sum(ranks) == sum(whole.values()) + (tensor - 1) * sum(whole[name] for name in again)


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
    dtype: torch.dtype = getattr(torch, precision)
    save_file(kit.random_tensors(FLUX), tmp_path / "flux.safetensors")
    save_file(kit.random_tensors(T5), tmp_path / "t5xxl.safetensors")
    stored = stored_part(tmp_path / "t5xxl.safetensors", "t5")
    for rank in {0, tensor - 1}:
        mine = seat(rank, tensor) if tensor > 1 else None
        flux = load_flux(tmp_path / "flux.safetensors", FLUX, "cpu", dtype, mine)
        assert allocated(flux) == sum(held_bytes(FLUX, tensor, precision).values())
        assert allocated(load_t5(stored, "cpu", dtype, mine)) == sum(held_bytes(T5, tensor, precision).values())


def on_meta(sizes: FluxConfig | T5Sizes, place: Place) -> int:
    """The bytes in bfloat16 of a network of this size, cut as ranks cut theirs."""
    with torch.device("meta"):
        network = (
            Flux(sizes)
            if isinstance(sizes, FluxConfig)
            else T5EncoderModel(T5Config(**vars(sizes), feed_forward_proj="gated-gelu"))
        )
    cut_network(network, sizes, place, cast("ProcessGroup", object()))
    return 2 * sum({id(tensor): tensor.numel() for tensor in network.parameters()}.values())


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3"])
def test_flux1_dev_at_its_size_is_counted_rank_by_rank(tmp_path: Path, dtype: str) -> None:
    """Headers alone on the one side, networks without memory on the other; fp8 is widened, so it takes no less."""
    stored = stored_in(DEV, str(real_comfyui(tmp_path, dtype=dtype)))
    assert stored.lacks == ""
    sums = []
    for tensor in DEGREES:
        held = kept(PoolSpec(model="flux1-dev", tensor=tensor, precision="bfloat16"), stored)
        each = {part: sum(tensors.values()) for part, tensors in held.items()}
        assert each["transformer"] == on_meta(FLUX1_DEV, Place(tensor - 1, tensor))
        assert each["t5"] == on_meta(T5Sizes(), Place(tensor - 1, tensor))
        assert each["vae"] == 2 * sum(map(math.prod, expected(FLUX1_VAE).values()))
        assert each["clip"] == 2 * sum(map(math.prod, expected(ClipSizes()).values()))
        sums.append(round(sum(each.values()) / 1e9, 1))
    assert sums == [33.7, 17.3, 9.0, 4.9]
