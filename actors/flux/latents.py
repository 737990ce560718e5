"""Between pictures and tokens: sizes, noise, 2x2 patches, position ids and pixels.

B batch, C channels, H rows, W columns, L = H/2 * W/2 tokens.
"""

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

PATCH = 2


def latent_size(height: int, width: int, compression: int = 8) -> tuple[int, int]:
    """Latent rows and columns of a picture, rounded up to whole patches."""
    cell = PATCH * compression
    return PATCH * math.ceil(height / cell), PATCH * math.ceil(width / cell)


def draw_noise(seed: int, height: int, width: int, channels: int = 16, compression: int = 8) -> Tensor:
    """One picture's noise, on the CPU in float32: a seed means the same thing on every device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    shape = (1, channels, *latent_size(height, width, compression))
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")


def pack(latent_BCHW: Tensor) -> Tensor:
    return F.pixel_unshuffle(latent_BCHW, PATCH).flatten(2).transpose(1, 2)


def unpack(tokens_BLC: Tensor, height: int, width: int, compression: int = 8) -> Tensor:
    """The latent whose picture is `height` by `width` pixels."""
    rows, columns = latent_size(height, width, compression)
    grid = tokens_BLC.transpose(1, 2).unflatten(2, (rows // PATCH, columns // PATCH))
    return F.pixel_shuffle(grid, PATCH)


def image_ids(latent_BCHW: Tensor, axis0: int = 0) -> Tensor:
    """Ids (axis0, row, column) of a latent's tokens; axis 0 is 0 for the picture being made and 1 for a reference."""
    batch, _, height, width = latent_BCHW.shape
    rows, columns = height // PATCH, width // PATCH
    ids = torch.zeros(rows, columns, 3, device=latent_BCHW.device)
    ids[..., 0] = axis0
    ids[..., 1] = torch.arange(rows, device=ids.device)[:, None]
    ids[..., 2] = torch.arange(columns, device=ids.device)
    return ids.reshape(1, rows * columns, 3).expand(batch, -1, -1)


def text_ids(txt_BTD: Tensor) -> Tensor:
    return torch.zeros(*txt_BTD.shape[:2], 3, device=txt_BTD.device)


def to_tensor(picture: "Image.Image") -> Tensor:
    pixels_HW3 = torch.from_numpy(np.array(picture.convert("RGB")))
    return pixels_HW3.permute(2, 0, 1).unsqueeze(0).float() / 127.5 - 1


def to_pixels(rgb_B3HW: Tensor) -> Tensor:
    """Bytes, B H W 3, rounded to the nearest."""
    scaled = ((rgb_B3HW.float() + 1) * 127.5).clamp(0, 255)
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).cpu()
