"""Files of hashes: what is read, what is left out, and that every bad line is named."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.digests import LOW_QUALITY, MAX_BAD, SIZE, read

A, B, C = (hashlib.sha256(letter).hexdigest() for letter in (b"a", b"b", b"c"))


def test_digests_comments_headings_and_quality() -> None:
    lines = ["hash,quality", "", f"{A},100", f"# {B}", f"{B.upper()}  # of a file", f'"{A}","80"', f"{C},{LOW_QUALITY}"]
    found = read(lines, "pdq")
    assert found.digests == b"".join(sorted(map(bytes.fromhex, (A, B))))
    assert (found.entries, found.doubles, found.low, found.bad) == (2, 1, 1, ())


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("xyz", "'x' is no hexadecimal digit"),
        (A[:-1], "has 63 digits, not 64"),
        (f"{A}00", "has 66 digits, not 64"),
        (f",{A}", "has 0 digits, not 64"),
        (f"{A},good", "the quality 'good' is no number from 0 to 100"),
        (f"{A},101", "the quality '101' is no number from 0 to 100"),
        (f"{A[:-1]}٣", "'٣' is no hexadecimal digit"),
        (f"{A},²", "the quality '²' is no number from 0 to 100"),
        ("quality", "'q' is no hexadecimal digit"),
    ],
)
def test_a_bad_line_is_named_with_its_number_and_reason(line: str, reason: str) -> None:
    found = read([A, "", line, B, "hash"], "pdq")
    assert [(bad.line, bad.reason) for bad in found.bad] == [(3, reason), (5, "'h' is no hexadecimal digit")]


def test_a_sha256_has_no_quality_for_which_it_could_be_left_out() -> None:
    found = read(["sha256", A, f"{B},10", f"{C}, "], "sha256")
    assert found.digests == b"".join(sorted(map(bytes.fromhex, (A, C))))
    (bad,) = found.bad
    assert bad.line == 3
    assert "'10' stands behind the digest" in bad.reason


def test_a_file_of_another_kind_is_not_read_to_its_end() -> None:
    endless = iter(lambda: "nothing of the kind", "")
    assert len(read(endless, "pdq").bad) == MAX_BAD


@given(st.lists(st.binary(min_size=SIZE, max_size=SIZE)))
def test_they_come_sorted_and_once(digests: list[bytes]) -> None:
    found = read((one.hex() for one in digests), "sha256")
    assert found.digests == b"".join(sorted(set(digests)))
    assert found.entries + found.doubles == len(digests)
