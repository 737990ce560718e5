"""Lines as strangers write them."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import cards
from farm.lines import FIELDS, MAX_SEED, BadLine, Line, parse_line
from farm.ports import ModelCard
from farm.sizes import nearest_size, of_parent, of_ratio
from tests.cards import CATALOGUE, TINY


def parse(**fields: Any) -> Line | list[BadLine]:
    return parse_line(7, json.dumps({"prompt": "a red circle"} | fields).encode(), CATALOGUE, "tiny")


def good(**fields: Any) -> Line:
    line = parse(**fields)
    assert isinstance(line, Line), line
    return line


def reason(field: str, **fields: Any) -> str:
    bad = parse(**fields)
    assert isinstance(bad, list), "the line was taken"
    assert [problem.field for problem in bad] == [field]
    assert bad[0].line == 7
    return bad[0].reason


def test_defaults_come_from_the_model() -> None:
    line = good()
    spec = line.spec
    assert (spec.model, spec.width, spec.height, spec.steps) == ("tiny", 128, 128, 8)
    assert (spec.guidance, spec.format) == (3.5, "png")
    assert (line.n, line.priority, spec.edit) == (1, 0, False)


def test_a_missing_seed_is_the_same_every_time_but_not_on_every_line() -> None:
    text = b'{"prompt": "a red circle"}'
    first, again, other = (parse_line(number, text, CATALOGUE, "tiny") for number in (1, 1, 2))
    assert isinstance(first, Line)
    assert isinstance(other, Line)
    assert first == again
    assert first.spec.seed != other.spec.seed


@pytest.mark.parametrize(
    ("field", "fields", "word"),
    [
        ("promt", {"promt": "x"}, "'prompt'"),
        ("model", {"model": "tinny"}, "'tiny'"),
        ("model", {"model": "later"}, "not rendered yet"),
        ("model", {"model": 3}, "must be text"),
        ("prompt", {"prompt": None}, "missing"),
        ("prompt", {"prompt": "  "}, "empty"),
        ("prompt", {"prompt": "x" * 101}, "at most 100"),
        ("prompt", {"prompt": "a\x00b"}, "U+0000"),
        ("prompt", {"prompt": "a\ud800b"}, "U+D800"),
        ("prompt", {"prompt": ["a"]}, "must be text"),
        ("width", {"width": 100}, "nearest to 100 is 96"),
        ("width", {"width": 4096}, "nearest to 4096 is 192"),
        ("height", {"height": 1}, "nearest to 1 is 64"),
        ("width", {"width": 192, "height": 192}, "160x160"),
        ("width", {"width": 128.0}, "whole number"),
        ("width", {"width": True}, "whole number"),
        ("width", {"width": -16}, "between"),
        ("aspect_ratio", {"aspect_ratio": "16/9"}, "16:9"),
        ("aspect_ratio", {"aspect_ratio": "0:9"}, "16:9"),
        ("aspect_ratio", {"aspect_ratio": "9:1"}, "nearest it draws is 192x64"),
        ("aspect_ratio", {"aspect_ratio": "1:1", "width": 64}, "not both"),
        ("steps", {"steps": 0}, "between 1 and 50"),
        ("steps", {"steps": 51}, "between 1 and 50"),
        ("guidance", {"guidance": 10.5}, "between 0 and 10"),
        ("guidance", {"guidance": "3"}, "must be a number"),
        ("n", {"n": 0}, "between"),
        ("n", {"n": 10**30}, "between"),
        ("seed", {"seed": -1}, "between"),
        ("seed", {"seed": MAX_SEED, "n": 2}, "between"),
        ("format", {"format": "jpg"}, "'jpeg'"),
        ("id", {"id": "a b"}, "letters"),
        ("priority", {"priority": 101}, "between"),
        ("image", {"image": "../../etc/passwd"}, "upload the file first"),
        ("image", {"image": "https://example.org/a.png"}, "upload the file first"),
        ("image", {"image": "job:0"}, "job:ID"),
        ("image", {"image": "line:a", "model": "flat"}, "these do: tiny"),
    ],
)
def test_a_bad_field_is_named_with_what_is_right(field: str, fields: dict[str, Any], word: str) -> None:
    assert word in reason(field, **fields)


def test_everything_wrong_with_a_line_is_said_at_once() -> None:
    bad = parse(width=100, steps=0, colour="red", format="gif")
    assert isinstance(bad, list)
    assert {problem.field for problem in bad} == {"width", "steps", "colour", "format"}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (b"{", "not JSON"),
        (b"[1]", "one JSON object"),
        (b'{"prompt": "a", "prompt": "b"}', "twice"),
        (b'{"prompt": "a", "guidance": NaN}', "NaN is not a number"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        (b'{"prompt": ' + b"[" * 60_000, "nested too deeply"),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "digits"),
    ],
)
def test_what_is_no_line_is_told_why(text: bytes, word: str) -> None:
    bad = parse_line(1, text, CATALOGUE, "tiny")
    assert isinstance(bad, list)
    assert [problem.field for problem in bad] == ["line"]
    assert word in bad[0].reason


def test_infinity_spelled_as_a_number_is_out_of_range() -> None:
    bad = parse_line(1, b'{"prompt": "a", "guidance": 1e999}', CATALOGUE, "tiny")
    assert isinstance(bad, list)
    assert bad[0].field == "guidance"


@given(st.binary(max_size=300))
def test_no_bytes_crash_the_parser(text: bytes) -> None:
    parse_line(1, text, CATALOGUE, "tiny")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(sorted(FIELDS))


@given(st.dictionaries(NAMES | st.text(max_size=8), VALUES, max_size=8))
def test_any_json_object_is_a_drawable_line_or_says_what_is_wrong(values: dict[str, Any]) -> None:
    line = parse_line(1, json.dumps(values).encode(), CATALOGUE, "tiny")
    if isinstance(line, list):
        assert line
        for problem in line:
            f"{problem.field} {problem.reason}".encode()  # printable anywhere: no lone surrogates
        return
    spec = line.spec
    assert spec.width % 16 == spec.height % 16 == 0
    assert TINY.min_pixels <= spec.width * spec.height <= TINY.max_pixels
    assert 0 <= spec.seed <= MAX_SEED - line.n + 1


@given(st.floats(1, 10_000), st.floats(1, 10_000))
def test_the_nearest_size_can_be_drawn(width: float, height: float) -> None:
    across, down = nearest_size(width, height, TINY)
    assert across % 16 == down % 16 == 0
    assert 64 <= across <= 192
    assert 64 <= down <= 192
    assert across * down <= TINY.max_pixels


@pytest.mark.parametrize(("ratio", "size"), [("1:1", (128, 128)), ("16:9", (176, 96)), ("2:3", (112, 160))])
def test_a_ratio_becomes_a_size_on_the_grid(ratio: str, size: tuple[int, int]) -> None:
    spec = good(aspect_ratio=ratio).spec
    assert (spec.width, spec.height) == size


@pytest.mark.parametrize(
    ("ratio", "size"),
    [("1:1", (128, 128)), ("4:3", (128, 96)), ("16:9", (176, 96)), ("2:3", (96, 144)), ("1:2", (96, 192))],
)
def test_a_ratio_becomes_a_size_the_model_prefers(ratio: str, size: tuple[int, int]) -> None:
    across, down = map(int, ratio.split(":"))
    assert of_ratio(across / down, cards.TINY) == (*size, True)


def test_a_ratio_far_from_all_preferred_sizes_does_not_fit() -> None:
    assert of_ratio(4.0, cards.TINY) == (192, 96, False)


@pytest.mark.parametrize(
    ("card", "parent", "size"),
    [
        (cards.TINY, (112, 160), (112, 160)),  # drawn by it, though none of those it prefers
        (cards.TINY, (1024, 768), (128, 96)),
        (cards.TINY, (192, 192), (192, 192)),
        (cards.KONTEXT, (1344, 768), (1344, 768)),
        (cards.KONTEXT, (176, 96), (432, 240)),  # a smaller model's: too few pixels
    ],
)
def test_an_edit_has_the_size_of_its_parent_or_the_nearest(
    card: ModelCard, parent: tuple[int, int], size: tuple[int, int]
) -> None:
    assert of_parent(*parent, card) == size


def test_only_an_edit_that_names_no_size_has_that_of_its_parent() -> None:
    assert not good(image="line:a").sized
    assert all(good(image="line:a", **size).sized for size in ({"height": 64}, {"aspect_ratio": "1:1"}))
    assert good().sized


def test_thousands_of_unknown_fields_are_a_few_problems() -> None:
    bad = parse(**{f"field{number:04}": 1 for number in range(6000)})
    assert isinstance(bad, list)
    assert len(bad) == 21
    assert (bad[-1].field, bad[-1].reason) == ("line", "has 5,980 more unknown fields")


def test_a_doubled_name_is_found_among_thousands_at_once() -> None:
    names = [f'"{number}": 1' for number in range(6000)]
    began = time.process_time()
    bad = parse_line(1, f"{{{', '.join([*names, names[-1]])}}}".encode(), CATALOGUE, "tiny")
    assert time.process_time() - began < 0.2
    assert isinstance(bad, list)
    assert bad[0].reason == 'the field "5999" stands there twice'
