"""The index of PDQ hashes finds what a comparison with each of them finds, and nothing else."""

import gc
import pickle
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.ports import HashList
from safety import nearest as index
from safety.hashes import LOW_QUALITY, SIZE, distance
from safety.nearest import FEW, INDEXES, Index, nearest


def digests_of(count: int, seed: int) -> bytes:
    rows = np.random.default_rng(seed).integers(0, 256, (count, SIZE), np.uint8)
    return b"".join(sorted(row.tobytes() for row in rows))


def flipped(digest: bytes, bits: list[int]) -> bytes:
    changed = bytearray(digest)
    for bit in bits:
        changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.fixture(scope="module")
def known() -> HashList:
    return HashList("known", "pdq", digests_of(FEW + 1, 1))


@given(st.integers(0, FEW), st.lists(st.integers(0, 255), max_size=40, unique=True))
def test_it_finds_what_a_comparison_with_each_finds(known: HashList, which: int, bits: list[int]) -> None:
    asked = flipped(known.digests[which * SIZE : (which + 1) * SIZE], bits) + b"\x64"
    assert nearest(known, asked) == distance(known.digests, asked)


def test_the_worst_spread_of_bits_is_not_missed(known: HashList) -> None:
    """Two in each word but one: no fewer words could be looked up."""
    for left in range(16):
        bits = [word * 16 + bit for word in range(16) for bit in ((3, 9) if word != left else (5,))]
        asked = flipped(known.digests[:SIZE], bits) + b"\x64"
        assert nearest(known, asked) == distance(known.digests, asked) == 31
        assert nearest(known, flipped(asked, [left * 16])) is None  # the 32nd


@given(st.sets(st.integers(0, 15), max_size=12), st.lists(st.integers(0, 255), max_size=33, unique=True))
def test_hashes_much_alike_are_compared_block_by_block(ones: set[int], bits: list[int]) -> None:
    rows = np.zeros((300, SIZE), np.uint8)
    rows[:, 0] = np.arange(300) % 256
    digests = b"".join(sorted(row.tobytes() for row in rows))
    asked = flipped(digests[:SIZE], sorted(ones ^ set(bits)))
    with patch.object(index, "BLOCK", 7):
        assert Index(digests).nearest(asked) == distance(digests, asked + b"\x64")


def test_what_shows_little_is_not_looked_up(known: HashList) -> None:
    assert nearest(known, known.digests[:SIZE] + bytes([LOW_QUALITY])) is None
    assert nearest(known, known.digests[:SIZE] + bytes([LOW_QUALITY + 1])) == 0


def test_an_index_goes_with_its_list() -> None:
    gone = pickle.loads(pickle.dumps(HashList("gone", "pdq", digests_of(FEW + 1, 2))))  # as Ray brings it
    assert nearest(gone, gone.digests[:SIZE] + b"\x64") == 0
    there = len(INDEXES)
    del gone
    gc.collect()
    assert len(INDEXES) == there - 1
