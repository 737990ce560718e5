"""Stage one: the autoencoder, trained on drawn scenes. Its scale and shift are measured on the latents at the end."""

import dataclasses
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from actors.flux.config import VaeConfig
from actors.flux.vae import AutoEncoder
from training.shapes import CANVAS_WEIGHTS, CANVASES, draw, invent

CONFIG = VaeConfig(ch=16, ch_mult=(1, 2, 4, 4), num_res_blocks=1, norm_groups=8)
BATCH_PIXELS = 32 * 32 * 32
PEAK_RATE = 2e-3
KL_WEIGHT = 5e-4
EDGE_WEIGHT = 0.5


def pixels(rng: random.Random, canvas: tuple[int, int], count: int) -> Tensor:
    drawn = np.stack([draw(invent(rng, canvas=canvas)) for _ in range(count)])
    return torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 127.5 - 1


def batch(rng: random.Random, share: float) -> Tensor:
    """Small cuts first, as many pictures as possible for the time; whole pictures of every size towards the end."""
    side = 32 if share < 0.4 else 64
    if share > 0.65:
        canvas = rng.choices(CANVASES, CANVAS_WEIGHTS)[0]
        return pixels(rng, canvas, max(2, 2 * BATCH_PIXELS // (canvas[0] * canvas[1])))
    whole = pixels(rng, (128, 128), BATCH_PIXELS // side**2)
    cuts = [(rng.randrange(128 - side), rng.randrange(128 - side)) for _ in whole]
    return torch.stack([rgb[:, y : y + side, x : x + side] for rgb, (x, y) in zip(whole, cuts, strict=True)])


def loss_of(vae: AutoEncoder, rgb_B3HW: Tensor) -> tuple[Tensor, Tensor]:
    """The training loss and the plain mean absolute error beside it."""
    with torch.autocast("cpu", torch.bfloat16):
        mean, logvar = vae.encode_moments(rgb_B3HW)
        mean, logvar = mean.float(), logvar.float().clamp(-20, 5)
        out = vae.decoder(mean + (0.5 * logvar).exp() * torch.randn_like(mean)).float()
    error = (out - rgb_B3HW).abs()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    across = F.l1_loss(out.diff(dim=3), rgb_B3HW.diff(dim=3)) + F.l1_loss(out.diff(dim=2), rgb_B3HW.diff(dim=2))
    return error.mean() + 2 * error.square().mean() + EDGE_WEIGHT * across + KL_WEIGHT * kl, error.mean().detach()


@torch.no_grad()
def start_quiet(vae: AutoEncoder) -> None:
    """With the noise of an untrained posterior, of variance 1, it learns far more slowly."""
    bias = vae.encoder.conv_out.bias
    assert bias is not None
    bias[CONFIG.z_channels :] = -5.0


def train(minutes: float, out: Path, seed: int = 1) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    vae = AutoEncoder(CONFIG)
    start_quiet(vae)
    path = out / "vae.safetensors"
    if path.exists():
        vae.load_state_dict(load_file(path))
    optimizer = torch.optim.AdamW(vae.parameters(), lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    start, step = time.monotonic(), 0
    while (share := (time.monotonic() - start) / (60 * minutes)) < 1:
        rate = PEAK_RATE * min(1, (step + 1) / 100) * (1 - share) ** 1.2 + 1e-5
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, error = loss_of(vae, batch(rng, share))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 100 == 0:
            print(f"vae step {step} loss {loss:.4f} error {127.5 * error:.2f}/255 rate {rate:.1e}", flush=True)
        if step % 500 == 0:
            save_file(vae.state_dict(), path)
    save_file(vae.state_dict(), path)


@torch.no_grad()
def measured(vae: AutoEncoder, seed: int = 2) -> VaeConfig:
    """The configuration with the shift and scale that give the latents mean 0 and deviation 1."""
    rng = random.Random(seed)
    means = torch.cat([vae.encode_moments(pixels(rng, canvas, 32))[0].flatten() for canvas in CANVASES])
    return dataclasses.replace(vae.config, shift_factor=means.mean().item(), scale_factor=1 / means.std().item())
