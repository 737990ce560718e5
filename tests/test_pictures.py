"""Pictures of strangers: whatever the file holds, an RGB frame or a kind refusal."""

import io
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

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


def test_a_jpeg_that_carries_a_second_picture_is_a_jpeg() -> None:
    """As phones write them: Ultra HDR, or both eyes."""
    first, second = Image.new("RGB", (40, 20), "red"), Image.new("RGB", (10, 5))
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    seen = pictures.inspect(data, 10_000)
    assert (seen.mime, seen.width, seen.height) == ("image/jpeg", 40, 20)
    frame = pictures.decode_stranger(data, 10_000)
    assert (frame.width, frame.height) == (40, 20)


def test_transparency_is_laid_on_white() -> None:
    frame = pictures.decode_own(encoded(Image.new("RGBA", (1, 1), (255, 0, 0, 0))))
    assert frame.pixels == b"\xff\xff\xff"


def test_a_picture_on_its_side_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.new("RGB", (40, 20)), "JPEG", exif=exif)
    seen = pictures.inspect(data, 10_000)
    assert (seen.width, seen.height) == (20, 40)
    frame = pictures.decode_stranger(data, 10_000)
    assert (frame.width, frame.height, len(frame.pixels)) == (20, 40, 2400)


def test_cmyk_and_sixteen_bits_become_rgb() -> None:
    cmyk = pictures.decode_own(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert cmyk.pixels[0] > 200 > 60 > cmyk.pixels[1]
    grey = pictures.decode_own(encoded(Image.new("I;16", (1, 1), 0x8000)))
    assert grey.pixels == b"\x80\x80\x80"


def bomb(side: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


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
    whole = bytearray(encoded(Image.linear_gradient("L").resize((16, 16)).convert("RGB"), "JPEG"))
    for _ in range(data.draw(st.integers(1, 5))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        frame = pictures.decode_stranger(bytes(whole), 100_000)
    except BadInput:
        return
    assert len(frame.pixels) == frame.width * frame.height * 3
