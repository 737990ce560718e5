"""What a file's own bytes say: which format it is, and the manifest store (JUMBF) that it carries. Pure,
bounded, total.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# The first bytes of every format a verifier may be handed. Names and claimed types are not asked.
MAGIC: dict[str, re.Pattern[bytes]] = {
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/webp": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "image/gif": re.compile(rb"GIF8[79]a"),
    "image/tiff": re.compile(rb"II\*\0|MM\0\*"),
    "image/avif": re.compile(rb"....ftypavi[fs]", re.DOTALL),
    "image/heic": re.compile(rb"....ftyp(heic|heix|mif1)", re.DOTALL),
}
# What a stranger's manifest store may hold, if we are to sign an edit of the picture: the library's work grows with the
# square of a manifest's boxes, and compressed ones could unpack to anything. Twenty turns of our own take 220 boxes.
MAX_STORE, MAX_BOXES = 1 << 20, 500
_BOX = re.compile(rb"jumb(?!f)")  # not the scheme of the references between them
_COMPRESSED = b"brob"
_JPEG_ALONE = {0x01, *range(0xD0, 0xDA)}  # markers without a length


def sniff(data: bytes) -> str | None:
    return next((mime for mime, magic in MAGIC.items() if magic.match(data)), None)


def manifest_store(data: bytes) -> bytes | None:
    """The embedded manifest store of a PNG, JPEG or WebP file, byte for byte as it was signed into it."""
    match sniff(data):
        case "image/png":
            return next((body for name, body in _png_chunks(data) if name == b"caBX"), None)
        case "image/webp":
            return next((body for name, body in _riff_chunks(data) if name == b"C2PA"), None)
        case "image/jpeg":
            return _join_app11(list(_jpeg_app11(data)))
        case _:
            return None


def is_heavy(store: bytes) -> bool:
    """Whether a manifest store holds more than we take from a stranger. It is looked at, not parsed."""
    return len(store) > MAX_STORE or _COMPRESSED in store or len(_BOX.findall(store)) > MAX_BOXES


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        at += 12 + size


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        yield data[at : at + 4], data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2


def _jpeg_app11(data: bytes) -> Iterator[bytes]:
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        marker = data[at + 1]
        size = 0 if marker in _JPEG_ALONE else int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xEB and data[at + 4 : at + 6] == b"JP":
            yield data[at + 4 : at + 2 + size]
        at += 2 + size


def _join_app11(segments: list[bytes]) -> bytes | None:
    """A box larger than a segment is cut; each piece repeats the box's header after its own eight bytes."""
    if not segments:
        return None
    first = segments[0]
    header = 16 if first[8:12] == b"\0\0\0\x01" else 8
    pieces = [piece for piece in segments if piece[2:4] == first[2:4]]
    pieces.sort(key=lambda piece: piece[4:8])
    return first[8 : 8 + header] + b"".join(piece[8 + header :] for piece in pieces)
