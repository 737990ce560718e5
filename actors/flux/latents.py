"""Between pictures and tokens: sizes, noise, 2x2 patches, position ids, pixels, and users' reference pictures.

B batch, C channels, H rows, W columns, L = H/2 * W/2 tokens.
"""

import io
import math
import struct
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

PATCH = 2
MAX_REFERENCE_PIXELS = 64_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
# What Pillow's decoders raise on damaged files, as seen by fuzzing; MemoryError is deliberately not among them.
DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError, KeyError, OverflowError)


class BadReference(ValueError):
    """A reference picture that cannot be used, with the reason."""


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
    grid = tokens_BLC.transpose(1, 2).unflatten(2, (rows // PATCH, columns // PATCH))  # type: ignore[no-untyped-call]
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


def to_tensor(picture: Image.Image) -> Tensor:
    pixels_HW3 = torch.from_numpy(np.array(picture.convert("RGB")))
    return pixels_HW3.permute(2, 0, 1).unsqueeze(0).float() / 127.5 - 1


def to_pixels(rgb_B3HW: Tensor) -> Tensor:
    """Bytes, B H W 3, rounded to the nearest."""
    scaled = ((rgb_B3HW.float() + 1) * 127.5).clamp(0, 255)
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).cpu()


def load_reference(source: bytes | str | Path, max_pixels: int = MAX_REFERENCE_PIXELS) -> Image.Image:
    """A reference as the eye sees it: upright, on white, in sRGB, 8 bits a channel."""
    try:
        with open_capped(source, max_pixels) as picture:
            picture.load()
            upright = ImageOps.exif_transpose(picture)
    except BadReference:
        raise
    except DECODING_ERRORS as error:
        raise BadReference(f"the reference picture cannot be decoded: {error}") from error
    return in_srgb(on_white(eight_bits(upright)), upright.info.get("icc_profile"))


def open_capped(source: bytes | str | Path, max_pixels: int) -> Image.Image:
    """The picture's header; its size is judged before a pixel is decoded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            stream = io.BytesIO(source) if isinstance(source, bytes) else source
            picture = Image.open(stream, formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise BadReference(f"the reference picture is too large: at most {max_pixels:,} pixels") from error
    width, height = picture.size
    if width * height > max_pixels:
        picture.close()
        raise BadReference(f"the reference picture has {width}x{height} pixels: at most {max_pixels:,} are read")
    return picture


def eight_bits(picture: Image.Image) -> Image.Image:
    """Pillow clips wide greys when it converts them; scale them instead."""
    if picture.mode == "F":
        raise BadReference("the reference picture has floating-point pixels: save it with 8 or 16 bits a channel")
    if not picture.mode.startswith("I"):
        return picture
    grey = np.asarray(picture).astype(np.int64).clip(0, 65535)
    return Image.fromarray(((grey + 128) // 257).astype(np.uint8))


def on_white(picture: Image.Image) -> Image.Image:
    if not picture.has_transparency_data:
        return picture if picture.mode in ("RGB", "CMYK") else picture.convert("RGB")
    layer = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def in_srgb(picture: Image.Image, icc_profile: bytes | None) -> Image.Image:
    if icc_profile:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
            srgb = ImageCms.createProfile("sRGB")
            return ImageCms.profileToProfile(picture, profile, srgb, outputMode="RGB") or picture
        except (ImageCms.PyCMSError, OSError):
            # A damaged profile, or one for another kind of picture, leaves the plain reading of the pixels.
            return picture.convert("RGB")
    return picture.convert("RGB")
