"""Pictures of strangers: whatever the file holds, an RGB frame or a kind refusal."""

import io
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from farm import pictures
from farm.errors import BadInput
from farm.ports import Frame


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def test_a_frame_is_known_by_its_size_and_pixels() -> None:
    assert Frame(2, 1, b"\0" * 6).sha256 != Frame(1, 2, b"\0" * 6).sha256


def test_inspect_names_the_format_not_the_file_name() -> None:
    seen = pictures.inspect(encoded(Image.new("RGB", (20, 30), "red"), "WEBP"), 10_000)
    assert (seen.mime, seen.width, seen.height) == ("image/webp", 20, 30)


def test_of_many_pictures_so_many_are_decoded_at_once_as_have_enough_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "ENOUGH", 250)
    files = [encoded(Image.new("RGB", (10, 10), (shade, 0, 0))) for shade in range(5)]
    first, rest = (pictures.decode_strangers(some, 10_000) for some in (files, files[3:]))
    assert [one.pixels[0] for one in (*first, *rest) if isinstance(one, Frame)] == [0, 1, 2, 3, 4]
    assert len(first) == 3
    large, bad = encoded(Image.new("RGB", (30, 30))), b"no picture"
    assert [type(one) for one in pictures.decode_strangers([large, bad], 10_000)] == [Frame]
    assert [type(one) for one in pictures.decode_strangers([bad, large], 10_000)] == [BadInput]


def test_a_jpeg_that_carries_a_second_picture_is_a_jpeg() -> None:
    """As phones write them: Ultra HDR, or both eyes."""
    first, second = Image.new("RGB", (40, 20), "red"), Image.new("RGB", (10, 5))
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    seen = pictures.inspect(data, 10_000)
    assert (seen.mime, seen.width, seen.height) == ("image/jpeg", 40, 20)
    frame = pictures.decode_stranger(data, 10_000)
    assert (frame.width, frame.height) == (40, 20)


def colour(data: bytes) -> tuple[int, ...]:
    return tuple(pictures.decode_own(data).pixels[:3])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(mode: str) -> None:
    clear, half = (Image.new("RGBA", (1, 1), (0, 0, 0, alpha)).convert(mode) for alpha in (0, 128))
    assert colour(encoded(clear)) == (255, 255, 255)
    assert colour(encoded(half)) == (127, 127, 127)


def test_a_transparent_colour_of_a_palette_or_of_a_picture_is_white() -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putpixel((1, 0), 1)
    frame = pictures.decode_own(encoded(picture, transparency=0))
    assert frame.pixels == bytes((255, 255, 255, 200, 100, 50))
    assert colour(encoded(Image.new("RGB", (1, 1), (9, 9, 9)), transparency=(9, 9, 9))) == (255, 255, 255)


def test_one_pixel_is_a_picture() -> None:
    assert pictures.decode_own(encoded(Image.new("RGB", (1, 1), (1, 2, 3)))) == Frame(1, 1, b"\1\2\3")


def profile(space: str) -> bytes:
    made: bytes = ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes()  # type: ignore[arg-type]
    return made


# Red light and green light change places.
SWAPPED = profile("sRGB").replace(b"rXYZ", b"keep").replace(b"gXYZ", b"rXYZ").replace(b"keep", b"gXYZ")


def test_a_colour_profile_is_followed_in_the_child() -> None:
    red = Image.new("RGB", (2, 1), (255, 0, 0))
    assert pictures.decode_stranger(encoded(red, icc_profile=SWAPPED), 100).pixels == b"\0\xff\0" * 2
    assert colour(encoded(red, icc_profile=profile("sRGB"))) == (255, 0, 0)
    assert colour(encoded(red.quantize(2), icc_profile=SWAPPED)) == (0, 255, 0)


def test_profile_and_transparency_and_orientation_are_all_followed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.new("RGBA", (2, 1), (255, 0, 0, 128))
    picture.putpixel((0, 0), (255, 0, 0, 0))
    frame = pictures.decode_own(encoded(picture, exif=exif, icc_profile=SWAPPED))
    assert (frame.width, frame.height) == (1, 2)
    assert frame.pixels[:3] == b"\xff\xff\xff"
    assert frame.pixels[4] == 255
    assert 0 < frame.pixels[3] < 255


def test_a_profile_of_another_kind_of_picture_is_left_out() -> None:
    assert colour(encoded(Image.new("L", (1, 1), 77), icc_profile=SWAPPED)) == (77, 77, 77)


@pytest.mark.parametrize("wrong", [b"not a profile", profile("LAB"), profile("sRGB")[:300]])
def test_a_profile_that_cannot_be_used_is_left_out(wrong: bytes) -> None:
    assert colour(encoded(Image.new("RGB", (1, 1), (30, 160, 60)), icc_profile=wrong)) == (30, 160, 60)


def test_a_picture_on_its_side_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.new("RGB", (40, 20)), "JPEG", exif=exif)
    seen = pictures.inspect(data, 10_000)
    assert (seen.width, seen.height) == (20, 40)
    frame = pictures.decode_stranger(data, 10_000)
    assert (frame.width, frame.height, len(frame.pixels)) == (20, 40, 2400)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_undone(orientation: int) -> None:
    upright = Image.new("RGB", (4, 2), "blue")
    upright.putpixel((0, 0), (255, 0, 0))
    undo = dict(zip((2, 3, 4, 5, 6, 7, 8), (0, 3, 1, 5, 2, 6, 4), strict=True))
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    frame = pictures.decode_own(encoded(stored, exif=exif))
    assert frame == Frame(4, 2, upright.tobytes())


@pytest.mark.parametrize(("ink", "expected"), [((0, 0, 0, 0), 255), ((0, 0, 0, 255), 0)])
def test_cmyk_is_read_as_ink_not_light(ink: tuple[int, ...], expected: int) -> None:
    assert all(abs(value - expected) <= 3 for value in colour(encoded(Image.new("CMYK", (8, 8), ink), "JPEG")))


@pytest.mark.parametrize("value", [0, 1000, 32768, 65535])
def test_sixteen_bits_are_scaled_not_clipped(value: int) -> None:
    wide = struct.pack(">H", value)
    for kind, channels in ((0, 1), (2, 3)):
        assert all(abs(each - value / 257) <= 1 for each in colour(png(1, 16, kind, b"\0" + wide * channels)))
    assert all(
        abs(each - (value / 257 + 255) / 2) <= 1.5 for each in colour(png(1, 16, 6, b"\0" + wide * 3 + b"\x80\0"))
    )


def png(side: int, depth: int, kind: int, rows: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", side, side, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def bomb(side: int) -> bytes:
    return png(side, 8, 2, bytes(1000))


def test_a_decompression_bomb_is_refused_by_its_size() -> None:
    with pytest.raises(BadInput, match="more than 1,000"):
        pictures.inspect(bomb(60_000), 1_000)


def test_a_thread_of_pixels_is_refused_because_the_gate_would_cut_it_into_millions_of_views() -> None:
    with pytest.raises(BadInput, match="too long and thin"):
        pictures.inspect(encoded(Image.new("RGB", (4000, 1))), 10_000_000)


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", bomb(10)[:-30]])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(BadInput):
        pictures.inspect(data, 1_000_000)


@settings(max_examples=15)
@given(st.data())
def test_a_damaged_file_is_a_picture_or_a_refusal(data: st.DataObject) -> None:
    gradient = Image.linear_gradient("L").resize((16, 16)).convert("RGB")
    whole = bytearray(encoded(gradient, "JPEG", icc_profile=SWAPPED))
    for _ in range(data.draw(st.integers(1, 5))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        frame = pictures.decode_stranger(bytes(whole), 100_000)
    except BadInput:
        return
    assert len(frame.pixels) == frame.width * frame.height * 3
