"""Reads a file of hashes: a hex digest a line, or, of PDQ, rows of digest and quality, as ThreatExchange's exports have
them. Pure.

Blank lines and what follows a `#` are left out; so is a first row that only names its columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SIZE = 32  # bytes of a digest
HEX = frozenset("0123456789abcdefABCDEF")
LOW_QUALITY = 49  # of 100: a PDQ hash of a picture that shows no more than this is like too many others
HEADINGS = ("hash", "digest", "sha256", "pdq", "pdq_hash")
MAX_ENTRIES = 4_000_000  # 128 MB in every gate, and of PDQ twice that for its index
MAX_BAD = 1000  # a file with more bad lines is of another kind, and is not read to its end


@dataclass(frozen=True, slots=True)
class BadDigest:
    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Read:
    digests: bytes  # sorted, no doubles
    entries: int
    doubles: int
    low: int  # rows left out for their quality
    bad: tuple[BadDigest, ...]


def read(lines: Iterable[str], kind: str) -> Read:
    found: set[bytes] = set()
    bad: list[BadDigest] = []
    rows = low = 0
    for number, line in enumerate(lines, 1):
        cells = [cell.strip().strip('"') for cell in line.partition("#")[0].split(",")]
        if not any(cells) or (not rows and not bad and cells[0].lower() in HEADINGS):
            continue
        if wrong := problem(cells, kind):
            bad.append(BadDigest(number, wrong))
            if len(bad) == MAX_BAD:
                break
            continue
        rows += 1
        if len(cells) > 1 and cells[1] and int(cells[1]) <= LOW_QUALITY:
            low += 1
        else:
            found.add(bytes.fromhex(cells[0]))
    if len(found) > MAX_ENTRIES:
        bad.append(BadDigest(0, f"{len(found):,} digests are more than {MAX_ENTRIES:,}, which every gate would hold"))
    return Read(b"".join(sorted(found)), len(found), rows - low - len(found), low, tuple(bad))


def problem(cells: list[str], kind: str) -> str:
    """What is wrong with a row; empty if nothing is."""
    digest, quality = cells[0], cells[1] if len(cells) > 1 else ""
    if strange := next((letter for letter in digest if letter not in HEX), ""):
        return f"{strange!r} is no hexadecimal digit"
    if len(digest) != 2 * SIZE:
        return f"has {len(digest)} digits, not {2 * SIZE}"
    if quality and kind != "pdq":
        return f"{quality[:20]!r} stands behind the digest: only PDQ hashes have a quality"
    if quality and not (quality.isascii() and quality.isdecimal() and int(quality) <= 100):
        return f"the quality {quality[:20]!r} is no number from 0 to 100"
    return ""
