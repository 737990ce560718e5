"""Positions: sinusoids for the scalar inputs, rotations for the tokens.

Angles stay in float32 or better, whatever the precision of the weights.

B batch, H heads, L tokens, D head size, A id axes.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Rotation(NamedTuple):
    cos_B1LD: Tensor  # D is half the head size: one angle for each pair of channels
    sin_B1LD: Tensor


def sinusoid(values_B: Tensor, dim: int = 256, max_period: float = 10_000.0) -> Tensor:
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=values_B.device) / half
    angles_BD = values_B.float()[:, None] * torch.exp(-math.log(max_period) * exponents)
    return torch.cat((angles_BD.cos(), angles_BD.sin()), dim=-1)


def rotation(ids_BLA: Tensor, axes_dim: tuple[int, ...], theta: int) -> Rotation:
    # Apple's GPUs have no float64; float32 is off by 1e-5 at position 128, which no picture shows.
    precise = torch.float32 if ids_BLA.device.type == "mps" else torch.float64
    angles = []
    for axis, dim in enumerate(axes_dim):
        exponents = torch.arange(0, dim, 2, dtype=precise, device=ids_BLA.device) / dim
        angles.append(ids_BLA[..., axis, None].to(precise) * theta**-exponents)
    angle_B1LD = torch.cat(angles, dim=-1).unsqueeze(1)
    return Rotation(angle_B1LD.cos().float(), angle_B1LD.sin().float())


def rotate(x_BHLD: Tensor, turn: Rotation) -> Tensor:
    even, odd = torch.unflatten(x_BHLD.float(), -1, (-1, 2)).unbind(-1)
    cos, sin = turn
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2).to(x_BHLD.dtype)
