"""Whose certificates stand in which signature of a manifest store: JUMBF boxes, COSE in CBOR. Bounded, total: what
cannot be read is left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cryptography import x509

from provenance.certificates import found_in, parsed

MAX_DEEP = 16
X5CHAIN = (33, "x5chain")
STAMPS = ("sigTst", "sigTst2")
_SIZES = {24: 1, 25: 2, 26: 4, 27: 8}


@dataclass(frozen=True, slots=True)
class Signature:
    signers: tuple[x509.Certificate, ...]  # that of the key first, then those above it
    stampers: tuple[x509.Certificate, ...]  # those of its time stamp, in any order


def signatures(store: bytes) -> dict[str, Signature]:
    """By the label of the manifest. One that is there twice is nobody's."""
    found: dict[str, Signature] = {}
    seen: set[str] = set()
    twice: set[str] = set()
    for label, manifest in _labelled(body for kind, body in _boxes(store) if kind == b"jumb"):
        for name, box in _labelled([manifest]):
            if name != "c2pa.signature":
                continue
            (twice if label in seen else seen).add(label)
            with contextlib.suppress(ValueError):
                found[label] = _signature(b"".join(body for kind, body in _boxes(box) if kind == b"cbor"))
    return {label: one for label, one in found.items() if label not in twice}


def _labelled(outer: Any) -> Iterator[tuple[str, bytes]]:
    """The boxes within these, by their labels."""
    for body in outer:
        for kind, inner in _boxes(body):
            described = next((said for name, said in _boxes(inner) if name == b"jumd"), b"")
            if kind == b"jumb" and len(described) > 17:
                yield described[17:].split(b"\0", 1)[0].decode(errors="replace"), inner


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at + 8 <= len(data):
        size, head = int.from_bytes(data[at : at + 4], "big"), 8
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        if size < head:
            return
        yield data[at + 4 : at + 8], data[at + head : at + size]
        at += size


def _signature(cose: bytes) -> Signature:
    said, _ = _item(cose, 0, 0)
    if not isinstance(said, list) or len(said) != 4 or not isinstance(said[0], bytes):
        raise ValueError("no COSE_Sign1")
    guarded = _item(said[0], 0, 0)[0] if said[0] else {}
    heads = [one for one in (guarded, said[1]) if isinstance(one, dict)]
    chain: Any = next((one[name] for one in heads for name in X5CHAIN if name in one), None)
    signers = [parsed(piece) for piece in _all_bytes(chain)]
    if None in signers:
        raise ValueError("a certificate that cannot be read")
    stamps = [made for one in heads for name in STAMPS for made in _all_bytes(one.get(name))]
    stampers = [made for stamp in stamps for made in found_in(stamp)]
    return Signature(tuple(made for made in signers if made is not None), tuple(stampers))


def _all_bytes(value: Any) -> Iterator[bytes]:
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, list | dict):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _all_bytes(one)


def _item(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    """One item of CBOR, and where the next begins. Lengths must be known beforehand, as COSE in C2PA has them."""
    if at >= len(data) or depth > MAX_DEEP:
        raise ValueError("it ends early, or goes too deep")
    kind, size = data[at] >> 5, data[at] & 31
    at += 1
    if size >= 24:
        wide = _SIZES.get(size)
        if wide is None or at + wide > len(data):
            raise ValueError("a length that is not known")
        size, at = int.from_bytes(data[at : at + wide], "big"), at + wide
    if kind < 2:
        return (size if kind == 0 else -1 - size), at
    if kind in (2, 3):
        if at + size > len(data):
            raise ValueError("it ends early")
        text = data[at : at + size]
        return (text if kind == 2 else text.decode()), at + size
    if kind == 6:
        return _item(data, at, depth + 1)
    if kind == 7:
        return None, at  # true, false, null, a number with a point: none of them is looked at
    made = []
    for _ in range(size * (kind - 3)):
        one, at = _item(data, at, depth + 1)
        made.append(one)
    return (made, at) if kind == 4 else (_mapped(made), at)


def _mapped(made: list[Any]) -> dict[Any, Any]:
    if not all(isinstance(name, int | str) for name in made[::2]):
        raise ValueError("a name that is neither a number nor a text")
    return dict(zip(made[::2], made[1::2], strict=True))
