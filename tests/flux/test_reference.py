"""Reference pictures of every awkward kind."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from actors.flux.reference import BadReference, load_reference


def saved(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def png(mode: int, depth: int, row: bytes, width: int = 1, height: int = 1) -> bytes:
    """A PNG written by hand, for depths that Pillow reads but does not write."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, mode, 0, 0, 0)
    data = zlib.compress(b"\0" + row)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def colour(source: bytes, at: tuple[int, int] = (0, 0)) -> tuple[int, ...]:
    picture = load_reference(source)
    assert picture.mode == "RGB"
    pixel = picture.getpixel(at)
    assert isinstance(pixel, tuple)
    return pixel


def profile(space: str) -> bytes:
    made: bytes = ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes()  # type: ignore[arg-type]
    return made


# Red light and green light change places.
SWAPPED = profile("sRGB").replace(b"rXYZ", b"keep").replace(b"gXYZ", b"rXYZ").replace(b"keep", b"gXYZ")


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_alpha_is_laid_on_white(mode: str, kind: str) -> None:
    clear, half = (Image.new("RGBA", (2, 2), (0, 0, 0, alpha)).convert(mode) for alpha in (0, 128))
    assert colour(saved(clear, kind)) == (255, 255, 255)
    assert colour(saved(half, kind)) == (127, 127, 127)


def test_a_transparent_palette_colour_is_white() -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putpixel((1, 0), 1)
    source = saved(picture, transparency=0)
    assert (colour(source), colour(source, (1, 0))) == ((255, 255, 255), (200, 100, 50))


def test_a_transparent_key_colour_is_white() -> None:
    source = saved(Image.new("RGB", (1, 1), (9, 9, 9)), transparency=(9, 9, 9))
    assert colour(source) == (255, 255, 255)


@pytest.mark.parametrize(("ink", "expected"), [((0, 0, 0, 0), 255), ((0, 0, 0, 255), 0)])
def test_cmyk_is_read_as_ink_not_light(ink: tuple[int, ...], expected: int) -> None:
    for kind in ("JPEG", "TIFF"):
        assert all(abs(channel - expected) <= 3 for channel in colour(saved(Image.new("CMYK", (8, 8), ink), kind)))


@pytest.mark.parametrize("value", [0, 1000, 32768, 65535])
def test_sixteen_bits_are_scaled_not_clipped(value: int) -> None:
    grey = Image.fromarray(np.full((2, 2), value, dtype=np.uint16))
    wide = struct.pack(">H", value)
    for source in (saved(grey), saved(grey, "TIFF"), png(0, 16, wide), png(2, 16, wide * 3)):
        assert all(abs(channel - value / 257) <= 1 for channel in colour(source))
    on_white = png(6, 16, wide * 3 + b"\x80\x00")
    assert all(abs(channel - (value / 257 + 255) / 2) <= 1.5 for channel in colour(on_white))


def test_floating_point_is_refused_kindly() -> None:
    with pytest.raises(BadReference, match="8 or 16 bits"):
        load_reference(saved(Image.fromarray(np.ones((2, 2), dtype=np.float32)), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(orientation: int) -> None:
    upright = Image.new("RGB", (4, 2), "blue")
    upright.putpixel((0, 0), (255, 0, 0))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    as_stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = load_reference(saved(as_stored, exif=exif))
    assert picture.size == (4, 2)
    assert picture.getpixel((0, 0)) == (255, 0, 0)


def test_orientation_and_profile_are_both_followed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    source = saved(Image.new("RGB", (4, 2), (255, 0, 0)), "JPEG", exif=exif, icc_profile=SWAPPED, quality=100)
    picture = load_reference(source)
    assert picture.size == (2, 4)
    assert picture.getpixel((0, 0)) == pytest.approx((0, 255, 0), abs=3)


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr", "LAB", "I", "I;16"])
def test_every_other_kind_is_a_picture_or_a_kind_refusal(mode: str) -> None:
    source = saved(Image.new(mode, (3, 2)), "TIFF")
    try:
        assert load_reference(source).mode == "RGB"
    except BadReference:
        assert mode == "LAB"


def test_one_pixel_is_a_picture() -> None:
    assert colour(saved(Image.new("RGB", (1, 1), (1, 2, 3)))) == (1, 2, 3)


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (2, 2), name) for name in ("red", "blue")]
    assert colour(saved(frames[0], "GIF", save_all=True, append_images=frames[1:])) == (255, 0, 0)


def test_a_colour_profile_is_followed() -> None:
    """A profile whose red light is green: what is stored as red is seen as green."""
    red = Image.new("RGB", (1, 1), (255, 0, 0))
    assert colour(saved(red, icc_profile=profile("sRGB"))) == (255, 0, 0)
    assert colour(saved(red, icc_profile=SWAPPED)) == (0, 255, 0)


@pytest.mark.parametrize("wrong", [b"not a profile", profile("LAB"), profile("sRGB")[:300]])
def test_a_profile_that_cannot_be_used_is_left_out(wrong: bytes) -> None:
    assert colour(saved(Image.new("RGB", (1, 1), (30, 160, 60)), icc_profile=wrong)) == (30, 160, 60)


def test_too_many_pixels_are_refused_before_decoding() -> None:
    for side in (8_001, 10_000, 60_000):
        with pytest.raises(BadReference, match="at most 64,000,000"):
            load_reference(png(2, 8, b"", side, side))
    with pytest.raises(BadReference, match="3x3 pixels: at most 8 "):
        load_reference(saved(Image.new("RGB", (3, 3))), max_pixels=8)


@pytest.mark.parametrize("source", [b"", b"GIF89a", b"<svg/>", b"%PDF-1.4", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_picture_is_refused(source: bytes) -> None:
    with pytest.raises(BadReference, match="cannot be decoded"):
        load_reference(source)


def test_a_path_works_and_a_missing_one_says_so(tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    path.write_bytes(saved(Image.new("RGB", (2, 2), "red")))
    assert load_reference(path).getpixel((1, 1)) == (255, 0, 0)
    with pytest.raises(BadReference, match=r"blue\.png"):
        load_reference(path.with_name("blue.png"))


SEEDS = [
    saved(Image.radial_gradient("L").resize((24, 16)).convert(mode), kind)
    for mode, kind in (
        ("RGB", "PNG"),
        ("P", "PNG"),
        ("RGB", "JPEG"),
        ("CMYK", "JPEG"),
        ("RGB", "WEBP"),
        ("RGB", "TIFF"),
        ("P", "GIF"),
        ("RGB", "BMP"),
    )
]


@settings(max_examples=150)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=6),
    st.integers(0, 6000),
)
@pytest.mark.filterwarnings("ignore")
def test_damage_gives_a_picture_or_a_clear_error(source: bytes, bites: list[tuple[int, int]], cut: int) -> None:
    damaged = bytearray(source)
    for place, value in bites:
        damaged[place % len(damaged)] = value
    kept = bytes(damaged[: cut % len(damaged) + 1]) if cut % 3 else bytes(damaged)
    try:
        picture = load_reference(kept, max_pixels=1_000_000)
    except BadReference:
        return
    assert picture.mode == "RGB"
