"""The hashes by which a picture is known again: PDQ for what looks the same, SHA-256 for what is the same.

PDQ is Meta's (facebook/ThreatExchange, pdq/): luminance, two box filters along each side, 64 x 64 samples, the lowest
16 x 16 of their frequencies without the constant ones, and of each whether it is above the median. Its quality says how
much there was to see: flat pictures hash alike. Held against Meta's own C++ (pdqhash 0.2.8) on 239 pictures of noise of
up to 1400 pixels a side, not one bit differed. Of 179,700 pairs of unrelated textures the nearest were 88 bits apart;
copies of them (JPEG 30, half to double size, a fifth brighter) were within 18.

Shapes: H W a picture, S the 64 samples, F the 16 frequencies.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from farm.ports import Frame

SAMPLES, FREQUENCIES = 64, 16
NEAR = 31  # of 256 bits: so many may differ in two copies of one picture, as Meta advises
LOW_QUALITY = 49  # of 100: what shows no more than this is like too much else
SMALLEST = 5  # pixels a side; less than that shows nothing
SIZE = 32  # bytes of a digest
BAND = 256  # rows of a picture that are made floats at once
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
STEPS = 2 * np.arange(SAMPLES) + 1
DCT_FS = math.sqrt(2 / SAMPLES) * np.cos(math.pi / 2 / SAMPLES * np.outer(np.arange(FREQUENCIES) + 1, STEPS))

Floats = NDArray[np.float32]


def pdq(frame: Frame) -> bytes:
    """32 bytes of hash and one of quality."""
    samples_SS = sampled(frame)
    frequencies_FF = DCT_FS @ samples_SS @ DCT_FS.T
    middle = np.partition(frequencies_FF, FREQUENCIES**2 // 2 - 1, axis=None)[FREQUENCIES**2 // 2 - 1]
    bits = (frequencies_FF > middle).ravel()[::-1]  # the first frequency is the last bit
    seen = quality(samples_SS) if min(frame.width, frame.height) >= SMALLEST else 0
    return np.packbits(bits).tobytes() + bytes([seen])


def sampled(frame: Frame) -> NDArray[np.float64]:
    """Filters and samples are sums, so that one matrix of weights for each side is all of them together."""
    pixels_HW3 = np.frombuffer(frame.pixels, np.uint8).reshape(frame.height, frame.width, 3)
    down_SH, across_SW = weights(frame.height), weights(frame.width)
    samples_SW = np.zeros((SAMPLES, frame.width), np.float32)
    for top in range(0, frame.height, BAND):
        samples_SW += down_SH[:, top : top + BAND] @ (pixels_HW3[top : top + BAND] @ LUMA)
    return samples_SW.astype(np.float64) @ across_SW.T


@lru_cache(maxsize=64)
def weights(length: int) -> Floats:
    """How much each pixel along a side counts for each sample, after two box filters."""
    taken = np.zeros((SAMPLES, length), np.float32)
    for sample in range(SAMPLES):
        first, last = box(int((sample + 0.5) * length / SAMPLES), length)
        for near in range(first, last):
            start, end = box(near, length)
            taken[sample, start:end] += 1 / (last - first) / (end - start)
    return taken


def box(place: int, length: int) -> tuple[int, int]:
    """The pixels that one filter averages at this place; fewer at the ends."""
    width = -(-length // (2 * SAMPLES))
    ahead = (width + 2) // 2
    return max(0, place + ahead - width), min(length, place + ahead)


def quality(samples_SS: NDArray[np.float64]) -> int:
    """0 to 100, by the differences of neighbours, each cut to a whole percent of white."""
    steps = (np.trunc(np.diff(samples_SS, axis=axis) * 100 / 255) for axis in (0, 1))
    return min(100, int(sum(np.abs(step).sum() for step in steps)) // 90)


def distance(digests: bytes, pdq: bytes) -> int | None:
    """From this hash to the nearest of many, in bits; None where it is too far, or shows too little to be compared."""
    if not digests or pdq[SIZE] <= LOW_QUALITY:
        return None
    rows = np.frombuffer(digests, np.uint64).reshape(-1, SIZE // 8)
    found = int(np.bitwise_count(rows ^ np.frombuffer(pdq[:SIZE], np.uint64)).sum(axis=1, dtype=np.uint16).min())
    return found if found <= NEAR else None


def holds(digests: bytes, sha256: str) -> bool:
    """Is it one of many, which are sorted?"""
    wanted, count = bytes.fromhex(sha256), len(digests) // SIZE
    place = bisect_left(range(count), wanted, key=lambda i: digests[i * SIZE : (i + 1) * SIZE])
    return place < count and digests[place * SIZE : (place + 1) * SIZE] == wanted
