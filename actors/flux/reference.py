"""Reference pictures as users send them, made into what the eye sees."""

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

MAX_REFERENCE_PIXELS = 64_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
# What Pillow's decoders raise on damaged files, as seen by fuzzing; MemoryError is deliberately not among them.
DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError, KeyError, OverflowError)


class BadReference(ValueError):
    """A reference picture that cannot be used, with the reason."""


def load_reference(source: bytes | str | Path, max_pixels: int = MAX_REFERENCE_PIXELS) -> Image.Image:
    """A reference as the eye sees it: upright, on white, in sRGB, 8 bits a channel."""
    try:
        with open_capped(source, max_pixels) as picture:
            picture.load()
            upright = ImageOps.exif_transpose(picture)
        return in_srgb(on_white(eight_bits(upright)), upright.info.get("icc_profile"))
    except BadReference:
        raise
    except DECODING_ERRORS as error:
        raise BadReference(f"the reference picture cannot be decoded: {error}") from error


def open_capped(source: bytes | str | Path, max_pixels: int) -> Image.Image:
    """The picture's header; its size is judged before a pixel is decoded."""
    try:
        stream = io.BytesIO(source) if isinstance(source, bytes) else source
        picture = Image.open(stream, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadReference(f"the reference picture is too large: at most {max_pixels:,} pixels are read") from error
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
