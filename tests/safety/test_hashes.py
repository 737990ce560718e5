"""PDQ against digests of Meta's own code, and the search for the same picture among many."""

import hashlib
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.ports import Frame
from safety.hashes import LOW_QUALITY, NEAR, SIZE, distance, holds, pdq
from tests.safety.conftest import flat
from tests.safety.textures import brightened, reencoded, scaled, textured

# What pdqhash 0.2.8, which wraps the C++ of facebook/ThreatExchange, says of these pictures.
META = {
    (0, 512, 512): "4e2aa9bdcb1a43dfa779fdc4561e77a458b0c3fce5b0f814b086166708c1d0aa",
    (1, 640, 512): "34680be39168b245b1a90d6e9ce708b6b1939852ea81ff52d64fba8916ad72fb",
    (2, 768, 1024): "1ba0e0c55aa8eb01be5ecb94468607b635f21568a350f5e645b7b0b50d6e3afb",
    (3, 1000, 600): "46bdfbf216f8ae59120ea1815392d5b60f72ad8f19165d277d06032c83aeaa5e",
}
COPIES: dict[str, Callable[[Frame], Frame]] = {
    "JPEG 30": lambda frame: reencoded(frame, "JPEG", 30),
    "WebP 60": lambda frame: reencoded(frame, "WEBP", 60),
    "half": lambda frame: scaled(frame, 0.5),
    "0.7": lambda frame: scaled(frame, 0.7),
    "double": lambda frame: scaled(frame, 2),
    "brighter": lambda frame: brightened(frame, 1.1),
}


def bits(one: bytes | bytearray, other: bytes) -> int:
    return (int.from_bytes(one[:SIZE]) ^ int.from_bytes(other[:SIZE])).bit_count()


@pytest.mark.parametrize(("drawn", "digest"), META.items())
def test_it_is_metas_pdq(drawn: tuple[int, int, int], digest: str) -> None:
    found = pdq(textured(*drawn))
    assert bits(found, bytes.fromhex(digest)) <= 2  # rounding: a frequency may lie at the median
    assert found[SIZE] == 100


def test_a_copy_is_found_and_another_picture_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    pictures = [textured(seed) for seed in range(24)]
    hashes = [pdq(one) for one in pictures]
    worst = {
        kind: max(bits(pdq(copied(one)), known) for one, known in zip(pictures[:5], hashes, strict=False))
        for kind, copied in COPIES.items()
    }
    apart = [bits(one, other) for one, other in combinations(hashes, 2)]
    false = sum(found <= NEAR for found in apart)
    with capsys.disabled():
        print(f"\nPDQ: {false} false matches in {len(apart)} pairs, the nearest {min(apart)} bits; copies {worst}")
    assert false == 0
    assert max(worst.values()) <= NEAR


def test_what_shows_little_matches_nothing() -> None:
    for frame in (flat((9, 9, 9)), Frame(4, 4, bytes(range(48)))):
        found = pdq(frame)
        assert len(found) == SIZE + 1
        assert found[SIZE] <= LOW_QUALITY
        assert distance(found[:SIZE], found) is None


@pytest.mark.parametrize("size", [(64, 64), (129, 127), (2000, 130), (1, 700)])
def test_any_size_has_a_hash(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(1).integers(0, 256, size[0] * size[1] * 3, np.uint8)
    assert len(pdq(Frame(*size, noise.tobytes()))) == SIZE + 1


@given(st.lists(st.binary(min_size=SIZE, max_size=SIZE), min_size=1, max_size=40, unique=True), st.data())
def test_the_nearest_is_the_one_that_a_loop_finds(digests: list[bytes], data: st.DataObject) -> None:
    asked = bytearray(data.draw(st.sampled_from(digests)))
    for place in data.draw(st.lists(st.integers(0, 255), max_size=40)):
        asked[place // 8] ^= 1 << place % 8
    nearest = min(bits(asked, one) for one in digests)
    found = distance(b"".join(sorted(digests)), bytes([*asked, 100]))
    assert found == (nearest if nearest <= NEAR else None)


@given(st.lists(st.binary(max_size=3), max_size=30), st.binary(max_size=3))
def test_an_exact_hash_is_found_where_it_is(known: list[bytes], asked: bytes) -> None:
    digests = b"".join(sorted({hashlib.sha256(one).digest() for one in known}))
    assert holds(digests, hashlib.sha256(asked).hexdigest()) is (asked in known)


def test_an_empty_list_holds_nothing() -> None:
    assert distance(b"", pdq(textured(0))) is None
    assert not holds(b"", "0" * 64)
