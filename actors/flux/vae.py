"""The autoencoder of FLUX.1 with Black Forest Labs' parameter names.

RGB in [-1, 1] goes to and from latents of an eighth of its size.

B batch, C channels, H rows, W columns, L = H * W.
"""

import itertools
import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actors.flux.config import VaeConfig


class ResBlock(nn.Module):
    def __init__(self, width_in: int, width_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width_in, eps=1e-6)
        self.conv1 = conv3(width_in, width_out)
        self.norm2 = nn.GroupNorm(groups, width_out, eps=1e-6)
        self.conv2 = conv3(width_out, width_out)
        self.nin_shortcut = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out: Tensor = self.conv1(F.silu(self.norm1(x_BCHW)))
        out = self.conv2(F.silu(self.norm2(out)))
        return out + (x_BCHW if self.nin_shortcut is None else self.nin_shortcut(x_BCHW))


class PixelAttention(nn.Module):
    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        normed = self.norm(x_BCHW)
        q_B1LC, k_B1LC, v_B1LC = (
            # Contiguous: every fused attention kernel refuses other strides, and the plain one holds L x L scores.
            layer(normed).flatten(2).transpose(1, 2).unsqueeze(1).contiguous()
            for layer in (self.q, self.k, self.v)
        )
        out_B1LC = F.scaled_dot_product_attention(q_B1LC, k_B1LC, v_B1LC)
        out: Tensor = self.proj_out(out_B1LC.squeeze(1).transpose(1, 2).reshape(x_BCHW.shape))
        return x_BCHW + out


class Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = conv3(width, width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))
        return out


class Middle(nn.Module):
    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(width, width, groups)
        self.attn_1 = PixelAttention(width, groups)
        self.block_2 = ResBlock(width, width, groups)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out: Tensor = self.block_2(self.attn_1(self.block_1(x_BCHW)))
        return out


class Level(nn.Module):
    """The residual blocks of one resolution and, but for the last, the step to the next one."""

    def __init__(self, width_in: int, width_out: int, blocks: int, groups: int) -> None:
        super().__init__()
        widths = [width_in] + [width_out] * blocks
        self.block = nn.ModuleList(ResBlock(a, b, groups) for a, b in pairwise(widths))
        self.downsample: Downsample | None = None
        self.upsample: Upsample | None = None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for block in self.block:
            x_BCHW = block(x_BCHW)
        for step in (self.downsample, self.upsample):
            x_BCHW = x_BCHW if step is None else step(x_BCHW)
        return x_BCHW


class Encoder(nn.Module):
    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths, groups = config.widths, config.norm_groups
        self.conv_in = conv3(3, widths[0])
        blocks = config.num_res_blocks
        self.down = nn.ModuleList(Level(a, b, blocks, groups) for a, b in pairwise((widths[0], *widths)))
        for level, width in zip(list(self.down)[:-1], widths[:-1], strict=True):
            level.downsample = Downsample(width)
        self.mid = Middle(widths[-1], groups)
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = conv3(widths[-1], 2 * config.z_channels)

    def forward(self, rgb_B3HW: Tensor) -> Tensor:
        x = self.conv_in(rgb_B3HW)
        for level in self.down:
            x = level(x)
        out: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(x))))
        return out


class Decoder(nn.Module):
    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths, groups = config.widths, config.norm_groups
        self.conv_in = conv3(config.z_channels, widths[-1])
        self.mid = Middle(widths[-1], groups)
        # up.0 is the finest level and runs last, as in the released files.
        blocks = config.num_res_blocks + 1
        self.up = nn.ModuleList(Level(b, a, blocks, groups) for a, b in pairwise((*widths, widths[-1])))
        for level, width in zip(list(self.up)[1:], widths[1:], strict=True):
            level.upsample = Upsample(width)
        self.norm_out = nn.GroupNorm(groups, widths[0], eps=1e-6)
        self.conv_out = conv3(widths[0], 3)

    def forward(self, z_BCHW: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z_BCHW))
        for level in reversed(self.up):
            x = level(x)
        out: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return out


class AutoEncoder(nn.Module):
    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def encode_moments(self, rgb_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the posterior, before scale and shift: what training needs."""
        mean, logvar = self.encoder(rgb_B3HW).chunk(2, dim=1)
        return mean, logvar

    def encode(self, rgb_B3HW: Tensor) -> Tensor:
        """The posterior's mean, not a sample: the same picture has the same latent."""
        mean, _ = self.encode_moments(rgb_B3HW)
        return (mean - self.config.shift_factor) * self.config.scale_factor

    def decode(self, latent_BCHW: Tensor) -> Tensor:
        rgb: Tensor = self.decoder(latent_BCHW / self.config.scale_factor + self.config.shift_factor)
        return rgb

    def decode_tiled(
        self,
        latent_BCHW: Tensor,
        tile: int = 96,
        overlap: int = 24,
        mine: Callable[[int], bool] = lambda _number: True,
        join: Callable[[Tensor], object] = lambda _total: None,
    ) -> Tensor:
        """Decode in overlapping tiles of `tile` latents a side, blended; only the size sets the tiling. Several ranks
        decode the tiles that are `mine` and `join` their sums in place."""
        height, width = latent_BCHW.shape[2:]
        side = self.config.compression
        total = torch.zeros(latent_BCHW.shape[0], 3, height * side, width * side, device=latent_BCHW.device)
        weight = torch.zeros_like(total[:1, :1])
        windows = itertools.product(spans(height, tile, overlap), spans(width, tile, overlap))
        for number, ((top, bottom), (left, right)) in enumerate(windows):
            place = (..., slice(top * side, bottom * side), slice(left * side, right * side))
            rows, columns = (ramp((b - a) * side, overlap * side, total) for a, b in ((top, bottom), (left, right)))
            mask = rows[:, None] * columns
            weight[place] += mask
            if mine(number):
                total[place] += self.decode(latent_BCHW[:, :, top:bottom, left:right]).float() * mask
        join(total)
        return (total / weight).to(latent_BCHW.dtype)


def conv3(width_in: int, width_out: int) -> nn.Conv2d:
    return nn.Conv2d(width_in, width_out, 3, padding=1)


def spans(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Tiles of one size spread evenly over the length, so that no sliver is left at an end."""
    if length <= tile:
        return [(0, length)]
    count = math.ceil((length - overlap) / (tile - overlap))
    starts = [round(i * (length - tile) / (count - 1)) for i in range(count)]
    return [(start, start + tile) for start in starts]


def ramp(length: int, overlap: int, like: Tensor) -> Tensor:
    """Weights rising over the overlap from both ends and never zero, so that their sum can be divided by."""
    position = torch.arange(length, device=like.device, dtype=like.dtype)
    edge = torch.minimum(position, length - 1 - position) + 1
    return (edge / (overlap + 1)).clamp(max=1.0)
