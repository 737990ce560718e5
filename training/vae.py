"""Stage one: the autoencoder, trained on drawn scenes.

Latents as they fall out of a plain training put nearly all their deviation into a few directions of colour; what tells
a star from a circle then drowns in the noise of flow matching. So each channel is held at deviation 1 as it trains, and
noise is laid over it: whatever the picture needs must stand out of the noise evenly. At the end what is left of means
and deviations moves into the encoder's last convolution.
"""

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
from training.shapes import CANVASES, any_canvas, draw, invent

CONFIG = VaeConfig(ch=16, ch_mult=(1, 2, 4, 4), num_res_blocks=1, norm_groups=8, scale_factor=1.0, shift_factor=0.0)
BATCH_PIXELS = 4 * 96 * 96
PEAK_RATE = 2e-3
NOISE = 0.4  # at most, over latents of deviation 1
EVEN_WEIGHT = 0.2
EDGE_WEIGHT = 12.0  # of a pixel on an edge, beside 1 for one that is not: the tips of stars are few


def pixels(rng: random.Random, canvas: tuple[int, int], count: int) -> Tensor:
    drawn = np.stack([draw(invent(rng, canvas=canvas)) for _ in range(count)])
    return torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 127.5 - 1


def batch(rng: random.Random) -> Tensor:
    canvas = any_canvas(rng)
    return pixels(rng, canvas, max(2, BATCH_PIXELS // (canvas[0] * canvas[1])))


def edges(rgb_B3HW: Tensor) -> Tensor:
    """1 within two pixels of a change of colour, else 0."""
    low, high = -F.max_pool2d(-rgb_B3HW, 5, 1, 2), F.max_pool2d(rgb_B3HW, 5, 1, 2)
    return ((high - low).amax(1, keepdim=True) > 0.1).float()


def unevenness(z_BCHW: Tensor) -> Tensor:
    """How far the channels are from mean 0 and deviation 1."""
    z_CN = z_BCHW.transpose(0, 1).flatten(1)
    return (z_CN.mean(1).square() + (z_CN.std(1) - 1).square()).mean()


def loss_of(vae: AutoEncoder, rgb_B3HW: Tensor) -> tuple[Tensor, Tensor]:
    """The training loss and the plain mean absolute error beside it."""
    with torch.autocast("cpu", torch.bfloat16):
        z = vae.encode_moments(rgb_B3HW)[0].float()
        noise_B111 = NOISE * torch.rand(len(z), 1, 1, 1)
        out = vae.decoder(z + noise_B111 * torch.randn_like(z)).float()
    error = (out - rgb_B3HW).abs()
    weight = 1 + EDGE_WEIGHT * edges(rgb_B3HW)
    return (weight * (error + 2 * error.square())).mean() + EVEN_WEIGHT * unevenness(z), error.mean().detach()


@torch.no_grad()
def settle(vae: AutoEncoder, pictures: int = 32, seed: int = 2) -> None:
    """Means and deviations of the latents move into the encoder's last convolution; the posterior's own deviation,
    which nothing here trains, becomes that of the mean noise."""
    rng = random.Random(seed)
    means = [vae.encode_moments(pixels(rng, canvas, pictures))[0] for canvas in CANVASES]
    z_CN = torch.cat([mean.transpose(0, 1).flatten(1) for mean in means], dim=1)
    last, count = vae.encoder.conv_out, vae.config.z_channels
    assert last.bias is not None
    std_C = z_CN.std(1)
    last.weight[:count] /= std_C[:, None, None, None]
    last.bias[:count] = (last.bias[:count] - z_CN.mean(1)) / std_C
    last.weight[count:] = 0
    last.bias[count:] = 2 * torch.tensor(NOISE / 2).log()


def train(minutes: float, out: Path, seed: int = 1) -> None:
    """Goes on from the weights in `out` when there are some."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    vae = AutoEncoder(CONFIG)
    path = out / "vae.safetensors"
    if path.exists():
        vae.load_state_dict(load_file(path))
    optimizer = torch.optim.AdamW(vae.parameters(), lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    start, step = time.monotonic(), 0
    while (share := (time.monotonic() - start) / (60 * minutes)) < 1:
        rate = PEAK_RATE * min(1, (step + 1) / 100) * (1 - share) ** 1.2 + 1e-5
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, error = loss_of(vae, batch(rng))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 100 == 0:
            print(f"vae step {step} loss {loss:.4f} error {127.5 * error:.2f}/255 rate {rate:.1e}", flush=True)
        if step % 500 == 0:
            save_file(vae.state_dict(), path)
    settle(vae)
    save_file(vae.state_dict(), path)
