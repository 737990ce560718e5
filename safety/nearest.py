"""The nearest of very many PDQ hashes, without a look at each of them.

Two hashes that differ by 31 bits of 256 or fewer differ by one bit or none in at least one of their 16 words of 16
bits: if all differed by two, that would be 32. So nothing near is missed by whoever compares only those that have one
of the 17 such values in one of their words: of random hashes one in 240. Candidates are compared in blocks, so that a
list of hashes that are much alike costs time, and no memory.

Shapes: N hashes, W their 16 words, C the candidates of one word.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from farm.ports import HashList
from safety.hashes import LOW_QUALITY, NEAR, SIZE, distance

WORDS, VALUES = 16, 1 << 16
CLOSE = np.array([0, *(1 << bit for bit in range(16))], np.uint16)  # what one bit or none changes in a word
FEW = 8192  # hashes that are compared as fast as they are looked up
BLOCK = 1 << 16  # candidates compared at once: 2 MB

Order = tuple[NDArray[np.uint32], NDArray[np.int64]]


class Index:
    def __init__(self, digests: bytes) -> None:
        self.rows = np.frombuffer(digests, np.uint64).reshape(-1, SIZE // 8)
        words_NW = np.frombuffer(digests, np.uint16).reshape(-1, WORDS)
        self.orders = [ordered(words_NW[:, w]) for w in range(WORDS)]

    def nearest(self, digest: bytes) -> int | None:
        asked, words_W = np.frombuffer(digest, np.uint64), np.frombuffer(digest, np.uint16)
        best = NEAR + 1
        for (order_N, starts), word in zip(self.orders, words_W, strict=True):
            values = (word ^ CLOSE).astype(np.intp)
            ends = zip(starts[values].tolist(), starts[values + 1].tolist(), strict=True)
            found_C = np.concatenate([order_N[start:end] for start, end in ends])
            for at in range(0, len(found_C), BLOCK):
                apart = np.bitwise_count(self.rows[found_C[at : at + BLOCK]] ^ asked).sum(axis=1, dtype=np.uint16)
                best = min(best, int(apart.min()))
        return best if best <= NEAR else None


def ordered(word_N: NDArray[np.uint16]) -> Order:
    """The places of the hashes by the value of one word, and where each value begins."""
    counts = np.bincount(word_N, minlength=VALUES)
    return np.argsort(word_N, kind="stable").astype(np.uint32), np.concatenate([[0], np.cumsum(counts)])


INDEXES: WeakKeyDictionary[HashList, Index] = WeakKeyDictionary()  # made at the first question, gone with their lists


def nearest(known: HashList, pdq: bytes) -> int | None:
    """From this hash to the nearest of the list, in bits; None where that is too far, or the picture shows too
    little."""
    if len(known.digests) <= FEW * SIZE:
        return distance(known.digests, pdq)
    if pdq[SIZE] <= LOW_QUALITY:
        return None
    if known not in INDEXES:
        INDEXES[known] = Index(known.digests)
    return INDEXES[known].nearest(pdq[:SIZE])
