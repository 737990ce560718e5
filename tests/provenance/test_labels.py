"""From frames to files: the same bytes each time, the labels in place, no pixel lost where none may be."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from farm.errors import BadInput
from farm.ports import Frame
from provenance import labels, manifest
from provenance.container import sniff
from tests.provenance.conftest import picture

FORMATS = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    width, height = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    size = width * height * 3
    return Frame(width, height, draw(st.binary(min_size=size, max_size=size)))


@settings(max_examples=40)
@given(frame=frames(), kind=st.sampled_from(sorted(FORMATS)))
def test_one_frame_always_gives_the_same_file(frame: Frame, kind: str) -> None:
    data = labels.encode(frame, kind, manifest.GENERATED)
    assert data == labels.encode(frame, kind, manifest.GENERATED)
    assert sniff(data) == FORMATS[kind]
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (frame.width, frame.height)
        if kind == "png":
            assert image.tobytes() == frame.pixels


@pytest.mark.parametrize("kind", FORMATS)
def test_the_labels_are_where_readers_look_for_them(kind: str) -> None:
    with Image.open(io.BytesIO(labels.encode(picture(1), kind, manifest.COMPOSITE))) as image:
        image.load()
        raw = image.info["XML:com.adobe.xmp"].encode() if kind == "png" else image.info["xmp"]
        assert raw.decode() == labels.xmp(manifest.COMPOSITE)
        assert image.getexif()[0x0131].startswith("Farm ")


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_lossy_is_visually_lossless(kind: str) -> None:
    """On a smooth picture with sharp edges, as the models draw them."""
    frame = Frame(64, 64, b"".join(bytes((x * 4, y * 4, 255 * (x > y))) for y in range(64) for x in range(64)))
    with Image.open(io.BytesIO(labels.encode(frame, kind, manifest.GENERATED))) as image:
        pairs = zip(image.convert("RGB").tobytes(), frame.pixels, strict=True)
        assert sum(abs(one - other) for one, other in pairs) / len(frame.pixels) < 4


def test_wrong_sizes_and_formats_are_refused() -> None:
    for width, height, size in ((4, 4, 47), (4, 4, 49), (0, 4, 0)):
        with pytest.raises(BadInput, match="RGB pixels"):
            labels.encode(Frame(width, height, bytes(size)), "png", manifest.GENERATED)
    with pytest.raises(BadInput, match="did you mean 'jpeg'"):
        labels.encode(picture(1), "jpg", manifest.GENERATED)
