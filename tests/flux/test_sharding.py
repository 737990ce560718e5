"""Sharded networks against the whole one, over real process groups; plans against the real sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from actors import loading, models
from actors.cards import TINY
from actors.flux import latents
from actors.flux.checkpoint import stored_part
from actors.flux.config import FLUX1_DEV, FluxConfig
from actors.flux.exchange import GangShape, Seat, decode_together
from actors.flux.model import Flux
from actors.flux.quant import Fp8
from actors.flux.render import RenderJob
from actors.flux.shapes import T5Sizes, expected
from actors.flux.sharding import Cut, Place, check, kept_shapes, module_names, plan_of, rule_for, share, slices
from actors.flux.spread import Spread, attention, has_flash, in_floats, merged
from actors.flux.weights import load_flux, load_t5
from tests.flux import containers_kit as kit
from tests.flux.ranks import Deed, together
from tests.flux.small import small_flux, small_vae

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]
SHAPES = [
    GangShape(2, 1, 1),
    GangShape(4, 1, 1),
    GangShape(1, 2, 2),
    GangShape(1, 2, 1),
    GangShape(1, 3, 1),
    GangShape(1, 4, 4),
    GangShape(1, 4, 2),
    GangShape(2, 2, 2),
    GangShape(2, 2, 1),
]
ALL_SHAPES = [GangShape.of(tensor, sequence, 4) for tensor in (1, 2, 4) for sequence in (1, 2, 4)]


def inputs(config: FluxConfig, rows: int, columns: int, words: int, reference: bool, batch: int = 2) -> Inputs:
    generator = torch.Generator().manual_seed(rows * columns + words)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    picture = torch.zeros(batch, 16, 2 * rows, 2 * columns)
    ids = latents.image_ids(picture)
    if reference:
        ids = torch.cat((ids, latents.image_ids(picture, axis0=1)), dim=1)
    txt = noise(batch, words, config.context_in_dim)
    guidance = torch.full((batch,), 3.5) if config.guidance_embed else None
    times, pooled = torch.tensor([0.9, 0.3][:batch]), noise(batch, config.vec_in_dim)
    return noise(batch, ids.shape[1], config.in_channels), ids, txt, latents.text_ids(txt), times, pooled, guidance


CASES = {
    "text to image": (4, 4, 8, False),
    "not square, odd counts": (3, 5, 7, False),
    "with a reference": (3, 3, 5, True),
    "fewer tokens than ranks": (1, 3, 1, False),
}


def of_case(flux: Flux, case: str) -> Inputs:
    rows, columns, words, reference = CASES[case]
    return inputs(flux.config, rows, columns, words, reference)


@torch.no_grad()
def velocities(path: Path, config: FluxConfig, seat: Seat) -> dict[str, Tensor]:
    flux = load_flux(path, config, "cpu", torch.float32, seat)
    network = Spread(flux, seat) if seat.sequence.degree > 1 else flux
    return {case: network(*of_case(flux, case)) for case in CASES}


@torch.no_grad()
def parity(guidance: bool, shapes: list[GangShape], folder: Path) -> None:
    whole = small_flux(guidance)
    path = folder / "flux1-dev.safetensors"
    save_file(whole.state_dict(), path)
    deed = partial(velocities, path, whole.config)
    for shape, by_rank in zip(shapes, together(folder, [(shape, deed) for shape in shapes]), strict=True):
        for case in CASES:
            expected_BLC = whole(*of_case(whole, case))
            for got in by_rank:
                error = (got[case] - expected_BLC).norm() / expected_BLC.norm()
                assert error < 1e-5, (shape, case, float(error))


def test_every_gang_computes_what_one_rank_does(tmp_path: Path) -> None:
    parity(True, SHAPES, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [True, False])
def test_the_largest_gangs_do_too(tmp_path: Path, guidance: bool) -> None:
    parity(guidance, ALL_SHAPES, tmp_path)


T5 = T5Sizes(vocab_size=60, d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=4)
LARGE = torch.randn(1, 16, 40, 130, generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def words(path: Path, seat: Seat | None) -> Tensor:
    t5 = load_t5(stored_part(path, "t5"), "cpu", torch.float32, seat)
    hidden: Tensor = t5(input_ids=torch.tensor([[5, 6, 7, 8, 2, 0, 0]])).last_hidden_state
    return hidden


@torch.no_grad()
def words_and_tiles(path: Path, seat: Seat) -> tuple[Tensor, Tensor]:
    return words(path, seat), decode_together(small_vae(), LARGE)


@torch.no_grad()
def in_fp8(paths: tuple[Path, Path], fp8: Fp8, seat: Seat) -> tuple[Tensor, Tensor, int]:
    """The velocity and the words of networks whose files are in fp8, and the bytes of both."""
    flux = load_flux(paths[0], small_flux().config, "cpu", torch.float32, seat, fp8)
    t5 = load_t5(stored_part(paths[1], "t5"), "cpu", torch.float32, seat, fp8)
    hidden = t5(input_ids=torch.tensor([[5, 6, 7, 8, 2, 0, 0]])).last_hidden_state
    kept = sum(parameter.nbytes for network in (flux, t5) for parameter in network.parameters())
    return flux(*of_case(flux, "with a reference")), hidden, kept


@torch.no_grad()
def test_a_gang_shares_t5_the_tiles_of_a_large_picture_and_weights_in_fp8(tmp_path: Path) -> None:
    path = kit.write(tmp_path / "t5xxl.safetensors", kit.random_tensors(T5))
    whole = words(path, None), small_vae().decode_tiled(LARGE)
    tensors = {"flux.safetensors": dict(small_flux().state_dict()), "t5.safetensors": kit.random_tensors(T5)}
    flux, t5 = (kit.write(tmp_path / "fp8" / name, kit.quantised(tensors[name], "rows")[0]) for name in tensors)
    kinds: tuple[Fp8, ...] = ("never", "stored")
    deeds: list[Deed] = [partial(words_and_tiles, path), *(partial(in_fp8, (flux, t5), fp8) for fp8 in kinds)]
    by_rank, wide, kept = together(tmp_path, [(GangShape(2, 1, 1), deed) for deed in deeds])
    for got in by_rank:
        for one, expected_one in zip(got, whole, strict=True):
            torch.testing.assert_close(one, expected_one, atol=1e-5, rtol=1e-5)
    for one, other in zip(wide, kept, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
        assert other[2] < one[2] / 3


def drawn(dtype: torch.dtype, seat: Seat | None) -> Tensor:
    renderer = loading.assemble(TINY, models.locate(TINY, None), loading.Load("cpu", dtype, "never"), seat)
    prompts = {1: "a red circle on a blue background", 4: "a small yellow cross on the left of a purple background"}
    pictures = renderer.render([RenderJob(prompt, seed, 96, 96, 8, 2.5) for seed, prompt in prompts.items()])
    return torch.tensor(np.array(pictures, dtype=np.int32))


def test_pictures_of_a_gang_and_of_one_rank(tmp_path: Path) -> None:
    """Float32 keeps within one level of 255. In bfloat16 other sums round otherwise, and some pixels show it: over 24
    pictures of the tiny model by 0.2 levels on average (0.7 in the worst) and 23 at most."""
    half, whole = torch.bfloat16, torch.float32
    deeds = [(GangShape(1, 2, 1), partial(drawn, dtype)) for dtype in (half, whole)]
    (rough, _), (exact, _) = together(tmp_path, deeds)
    assert (exact - drawn(whole, None)).abs().max() <= 1
    apart = (rough - drawn(half, None)).abs()
    assert apart.float().mean() < 0.5
    assert apart.max() <= 30
    assert 0 < (rough - exact).abs().float().mean() < 1


def test_a_gang_of_another_size_than_its_group_is_refused() -> None:
    for wrong in ((0, 1, 1), (1, 4, 3), (1, 2, 4)):
        with pytest.raises(ValueError, match="is no shape"):
            GangShape(*wrong)


def test_heads_are_traded_as_far_as_there_are_heads() -> None:
    assert GangShape.of(1, 8, 24) == GangShape(1, 8, 8)
    assert GangShape.of(4, 4, 24) == GangShape(4, 4, 2)
    assert GangShape.of(8, 2, 24) == GangShape(8, 2, 1)


@pytest.mark.parametrize("sizes", [FLUX1_DEV, T5Sizes()], ids=["flux1-dev", "t5-xxl"])
def test_a_plan_names_every_module_and_uses_every_rule(sizes: FluxConfig | T5Sizes) -> None:
    used = {rule_for(plan_of(sizes), module) for module in module_names(expected(sizes))}
    assert used == set(plan_of(sizes))
    assert all(rule.why for rule in used)
    assert all(bool(rule.parts) == (rule.cut is not Cut.WHOLE) for rule in used)


@pytest.mark.parametrize("sizes", [FLUX1_DEV, T5Sizes()], ids=["flux1-dev", "t5-xxl"])
@pytest.mark.parametrize("degree", [2, 4, 8])
def test_the_ranks_slices_make_up_each_tensor_exactly(sizes: FluxConfig | T5Sizes, degree: int) -> None:
    for name, shape in expected(sizes).items():
        cuts = [slices(sizes, name, shape, Place(rank, degree)) for rank in range(degree)]
        if cuts[0] is None:
            assert set(cuts) == {None}
            continue
        taken = sorted((cut.start, cut.start + cut.length) for one in cuts if one for cut in one)
        assert taken[0][0] == 0
        assert taken[-1][1] == shape[cuts[0][0].dim]
        assert all(end == start for (_, end), (start, _) in pairwise(taken)), name


def test_what_a_rank_keeps_at_real_size() -> None:
    whole = sum(map(math.prod, expected(FLUX1_DEV).values()))
    for degree, more in ((2, 1.01), (4, 1.02), (8, 1.04)):
        parts = [sum(map(math.prod, kept_shapes(FLUX1_DEV, Place(r, degree)).values())) for r in range(degree)]
        assert len(set(parts)) == 1
        assert whole < sum(parts) < more * whole


def test_a_degree_that_does_not_divide_is_refused_with_those_that_do() -> None:
    with pytest.raises(ValueError, match=r"tensor 5 does not divide 24 heads: possible are 1, 2, 3, 4, 6, 8, 12, 24"):
        check(FLUX1_DEV, 5)


@given(st.integers(0, 5000), st.integers(1, 16))
def test_shares_cover_all_tokens_in_order(tokens: int, degree: int) -> None:
    parts = [share(tokens, rank, degree) for rank in range(degree)]
    assert [at for start, real in parts for at in range(start, start + real)] == list(range(tokens))
    assert all(real <= parts[0][1] for _, real in parts)


@pytest.mark.parametrize("attention", [attention, in_floats])
def test_attention_in_parts_is_attention(attention: Callable[..., tuple[Tensor, Tensor]]) -> None:
    torch.manual_seed(1)
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 11, 8), torch.randn(2, 3, 11, 8)
    whole = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    total = weight = None
    for start, end in ((0, 4), (4, 5), (5, 11)):
        total, weight = merged(total, weight, *attention(q, k[:, :, start:end], v[:, :, start:end]))
    assert total is not None
    torch.testing.assert_close(total, whole, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("capability", "has"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_flash_attention_is_for_gpus_from_ampere_on(
    capability: tuple[int, int], has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_flash.__wrapped__(torch.device("cuda", 0)) is has
