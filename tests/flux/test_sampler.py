"""The schedule against diffusers' scheduler; Euler steps, cancelling and resuming."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from actors.flux import sampler
from tests.flux import small


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 4, 28, 50])
@pytest.mark.parametrize("tokens", [64, 256, 1500, 4096, 8192])
def test_schedule_equals_diffusers(steps: int, tokens: int, shift: bool) -> None:
    peer = small.peer_scheduler(shift)
    peer.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=calculate_shift(tokens) if shift else None)
    ours = torch.tensor(sampler.schedule(steps, tokens, shift))
    torch.testing.assert_close(ours, peer.sigmas, rtol=0, atol=1e-6)


@given(st.integers(1, 200), st.integers(1, 20_000), st.booleans())
def test_times_fall_from_one_to_zero(steps: int, tokens: int, shift: bool) -> None:
    times = sampler.schedule(steps, tokens, shift)
    assert (len(times), times[0], times[-1]) == (steps + 1, 1.0, 0.0)
    assert all(before > after for before, after in pairwise(times))


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="1 or more"):
        sampler.schedule(0, 256, True)


def spiral(latent_BLC: Tensor, time: float) -> Tensor:
    return latent_BLC.roll(1, dims=-1) * math.cos(time) + 0.3


def test_euler_equals_the_peers_steps() -> None:
    peer = small.peer_scheduler(True)
    peer.set_timesteps(sigmas=np.linspace(1.0, 1 / 6, 6), mu=calculate_shift(300))
    latent = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    theirs = latent
    for t, sigma in zip(peer.timesteps, peer.sigmas, strict=False):
        theirs = peer.step(spiral(theirs, float(sigma)), t, theirs).prev_sample
    torch.testing.assert_close(sampler.euler(spiral, latent, sampler.schedule(6, 300, True)), theirs)


def test_each_step_is_seen_and_heads_for_the_picture() -> None:
    """Along a straight line from noise to picture every step already heads for the picture itself."""
    noise, picture = torch.randn(2, 1, 6, 4, generator=torch.Generator().manual_seed(1))
    seen: list[sampler.Progress] = []
    times = sampler.schedule(5, 6, True)
    end = sampler.euler(lambda _, __: noise - picture, noise, times, on_step=seen.append)
    assert [(p.step, p.total) for p in seen] == [(i, 5) for i in range(1, 6)]
    for progress in seen:
        torch.testing.assert_close(progress.clean_BLC, picture)
    torch.testing.assert_close(end, picture)
    torch.testing.assert_close(seen[-1].latent_BLC, end, rtol=0, atol=0)


def test_the_latent_stays_in_float32_whatever_the_model_runs_in() -> None:
    seen: list[torch.dtype] = []

    def rough(latent_BLC: Tensor, time: float) -> Tensor:
        seen.append(latent_BLC.dtype)
        return latent_BLC.bfloat16()

    end = sampler.euler(rough, torch.ones(1, 1, 1, dtype=torch.bfloat16), sampler.schedule(3, 1, False))
    assert {end.dtype, *seen} == {torch.float32}


@pytest.mark.parametrize("stop", [0, 1, 4])
def test_cancelled_and_resumed_is_the_same_to_the_bit(stop: int) -> None:
    latent = torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(2))
    times = sampler.schedule(5, 300, True)
    calls = iter(range(10))
    with pytest.raises(sampler.Cancelled, match=f"after step {stop} of 5") as caught:
        sampler.euler(spiral, latent, times, cancelled=lambda: next(calls) == stop)
    saved = caught.value.saved
    assert (saved.step, saved.total, saved.latent_BLC.dtype) == (stop, 5, torch.float32)
    resumed = sampler.euler(spiral, saved.latent_BLC, times, start=saved.step)
    torch.testing.assert_close(resumed, sampler.euler(spiral, latent, times), rtol=0, atol=0)


def test_cancelling_is_asked_before_every_step_and_never_after_the_last() -> None:
    calls = iter(range(10))
    sampler.euler(spiral, torch.zeros(1, 1, 2), sampler.schedule(4, 300, False), cancelled=lambda: next(calls) == 4)
    assert next(calls) == 4
