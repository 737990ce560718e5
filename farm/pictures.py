"""Encoded pictures in, RGB frames out. Files of strangers are opened in a limited child; our own in this process.

Whatever the file holds becomes 8-bit sRGB: turned upright by its EXIF, transparency laid on white, its colour profile
followed, CMYK and 16 bits converted.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import cast

from PIL import Image, ImageCms, ImageOps

from farm import child
from farm.errors import BadInput, Fault
from farm.job import FORMATS
from farm.ports import Frame

MAX_RATIO = 16
ENOUGH = 1 << 26  # pixels: 200 MB
ACCEPTED = [name.upper() for name in FORMATS]


@dataclass(frozen=True, slots=True)
class Picture:
    mime: str
    width: int
    height: int


def inspect(data: bytes, max_pixels: int) -> Picture:
    """Decode a stranger's file whole, in a child, and say what it is. BadInput if it is not a picture we take."""
    return Picture(**json.loads(child.run("farm.pictures", ["inspect", str(max_pixels)], data)))


def decode_stranger(data: bytes, max_pixels: int) -> Frame:
    (frame,) = _decoded([data], max_pixels)
    return frame


def decode_strangers(files: Sequence[bytes], max_pixels: int) -> list[Frame | BadInput]:
    """The first of many of one person in one child: until they have ENOUGH pixels, and one at least. Where that fails,
    the first half of them, down to the picture that is refused."""
    try:
        return [*_decoded(files, max_pixels)]
    except (BadInput, Fault) as error:
        if len(files) == 1 and isinstance(error, BadInput):
            return [error]
        if len(files) < 2:
            raise
    return decode_strangers(files[: len(files) // 2], max_pixels)


def _decoded(files: Sequence[bytes], max_pixels: int) -> Iterator[Frame]:
    limits = [str(max_pixels), str(ENOUGH), *(str(len(data)) for data in files)]
    return _frames(child.run("farm.pictures", ["decode", *limits], b"".join(files)))


def _frames(answer: bytes) -> Iterator[Frame]:
    """Each frame's size on a line of its own, then its pixels."""
    rest = io.BytesIO(answer)
    while head := rest.readline():
        width, height = json.loads(head)
        yield Frame(width, height, rest.read(width * height * 3))


def decode_own(data: bytes) -> Frame:
    with Image.open(io.BytesIO(data), formats=ACCEPTED) as image:
        return to_frame(image)


def to_frame(image: Image.Image) -> Frame:
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):  # 16-bit grey: keep its upper eight bits
        upright = upright.convert("I").point(lambda value: value / 256).convert("L")
    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        upright = upright.convert("RGB")
    rgb = in_srgb(upright, image.info.get("icc_profile"))
    return Frame(rgb.width, rgb.height, rgb.tobytes())


def in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """As the profile in the file means its numbers. One that is damaged or of another kind of picture is left out."""
    image = image if image.mode in ("L", "CMYK") else image.convert("RGB")
    if profile:
        with contextlib.suppress(ImageCms.PyCMSError, OSError):
            meant, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
            seen = ImageCms.profileToProfile(image, meant, srgb, outputMode="RGB")
            return cast("Image.Image", seen)  # None where it is told to work in place
    return image.convert("RGB")


def _open_limited(data: bytes, max_pixels: int) -> Image.Image:
    Image.MAX_IMAGE_PIXELS = None  # our own limit below, checked before a pixel is decoded
    try:
        image = Image.open(io.BytesIO(data), formats=ACCEPTED)
    except (OSError, ValueError, SyntaxError):
        child.refuse("this is not a PNG, JPEG or WebP picture", "send one of these formats")
    if image.width * image.height > max_pixels:
        size = f"{image.width}x{image.height}"
        child.refuse(f"the picture has {size} pixels, more than {max_pixels:,}", "send a smaller picture")
    if max(image.size) > MAX_RATIO * min(image.size):
        # The gate looks at squares of the short side: a thread of pixels would make millions of them.
        child.refuse(f"the picture is {image.width}x{image.height}, too long and thin", f"at most {MAX_RATIO} to 1")
    try:
        image.load()
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        child.refuse(f"the picture does not decode: {error}", "is the file whole? save it again")
    return image


def main(argv: list[str]) -> None:
    child.limit()
    max_pixels = int(argv[1])
    if argv[0] == "inspect":
        image = _open_limited(sys.stdin.buffer.read(), max_pixels)
        # Pillow calls a JPEG with more pictures behind the first one MPO; we take the first.
        mime = FORMATS[str(image.format).lower().replace("mpo", "jpeg")]
        upright = ImageOps.exif_transpose(image)
        print(json.dumps(asdict(Picture(mime, upright.width, upright.height))))
        return
    enough, pixels = int(argv[2]), 0
    for size in argv[3:]:
        frame = to_frame(_open_limited(sys.stdin.buffer.read(int(size)), max_pixels))
        sys.stdout.buffer.write(json.dumps([frame.width, frame.height]).encode() + b"\n" + frame.pixels)
        pixels += frame.width * frame.height
        if pixels >= enough:
            return


if __name__ == "__main__":
    main(sys.argv[1:])
