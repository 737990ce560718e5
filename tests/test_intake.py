"""Batches as strangers write them."""

from __future__ import annotations

import io
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, func, insert, select

from farm.db import DatabaseDown, connect, migrate
from farm.errors import BadInput, TooLarge
from farm.intake import MAX_LINE, MAX_SHOWN, Receipt, Rules, Submission, judge, read_lines, refusal, survey, take
from farm.job_queue import JobQueue
from farm.lines import FIELDS, MAX_SEED, BadLine, Line, nearest_size, parse_line
from farm.ports import Licence, ModelCard
from farm.tables import BAD_LINE, BATCH, JOB, PROJECT, UPLOAD

OPEN = Licence("Apache-2.0", "https://example.org", asks_filter_or_review=False, commercial_use=True)
TINY = ModelCard(
    name="tiny",
    title="Tiny",
    licence=OPEN,
    edits=True,
    steps=8,
    max_steps=50,
    guidance=3.5,
    max_guidance=10.0,
    min_side=64,
    max_side=192,
    min_pixels=64 * 64,
    max_pixels=160 * 160,
    side=128,
    max_prompt=100,
)
CATALOGUE = {
    "tiny": TINY,
    "flat": replace(TINY, name="flat", edits=False),
    "later": replace(TINY, name="later", rendered=False),
}


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


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_lines_are_split_at_newlines_alone(data: bytes) -> None:
    expected = [line.strip() for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
    assert [text for _, text in read_lines(io.BytesIO(data))] == expected


def test_a_long_line_is_refused_and_the_next_one_read() -> None:
    file = io.BytesIO(b"x" * (3 * MAX_LINE) + b"\nlast")
    assert list(read_lines(file)) == [(1, None), (2, b"last")]


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    engine = connect(f"sqlite:///{tmp_path}/farm.db")
    migrate(engine)
    with engine.begin() as connection:
        connection.execute(insert(PROJECT), [{"id": name, "created_at": 0.0} for name in ("ours", "theirs")])
        upload = {"id": "up_" + "a" * 32, "project_id": "theirs", "name": "a.png", "key": "a", "mime": "image/png"}
        connection.execute(insert(UPLOAD), upload | {"width": 1, "height": 1, "bytes": 1, "created_at": 0.0})
    return engine


def batch(*lines: dict[str, Any]) -> io.BytesIO:
    return io.BytesIO(b"\n".join(json.dumps({"prompt": "a red circle"} | line).encode() for line in lines))


def judged(engine: Engine, file: io.BytesIO, project: str = "ours") -> list[Line | list[BadLine]]:
    return [line for chunk in judge(file, Rules(project, CATALOGUE, "tiny"), engine) for line in chunk]


def test_a_line_edits_an_earlier_good_line_only(engine: Engine) -> None:
    lines = judged(
        engine,
        batch(
            {"id": "a"},
            {"id": "b", "image": "line:a"},
            {"id": "c", "image": "line:d"},
            {"id": "d", "image": "line:c"},
            {"id": "e", "image": "line:e"},
            {"id": "f", "width": 1},
            {"image": "line:f"},
        ),
    )
    assert [isinstance(line, Line) for line in lines] == [True, True, False, False, False, False, False]


def test_an_id_is_used_once_and_names_one_image(engine: Engine) -> None:
    lines = judged(engine, batch({"id": "a", "n": 2}, {"id": "a"}, {"image": "line:a"}))
    assert isinstance(lines[1], list)
    assert lines[1][0].field == "id"
    assert isinstance(lines[2], list)
    assert "makes 2 images" in lines[2][0].reason


def test_another_projects_upload_is_unknown(engine: Engine) -> None:
    line = {"image": "up_" + "a" * 32}
    ours, theirs = judged(engine, batch(line)), judged(engine, batch(line), "theirs")
    assert isinstance(ours[0], list)
    assert "no upload" in ours[0][0].reason
    assert isinstance(theirs[0], Line)


def test_all_bad_lines_are_counted_and_the_list_is_capped(engine: Engine) -> None:
    file = batch({}, *[{"steps": 0}] * 2500, {})
    found = survey(judge(file, Rules("ours", CATALOGUE, "tiny"), engine))
    assert (found.lines, found.jobs, found.bad_lines, len(found.shown)) == (2502, 2, 2500, MAX_SHOWN)
    error = refusal(found)
    assert error is not None
    assert error.problem()["bad_line_count"] == 2500


def test_the_hash_is_of_what_is_asked_for_not_of_how_it_is_written(engine: Engine) -> None:
    def sha256(text: bytes) -> str:
        return survey(judge(io.BytesIO(text), Rules("ours", CATALOGUE, "tiny"), engine)).sha256

    assert sha256(b'{"prompt":"a","seed":1}') == sha256(b'\n{ "seed": 1, "width": 128, "prompt": "a" }\r\n')
    assert sha256(b'{"prompt":"a","seed":1}') != sha256(b'{"prompt":"a","seed":2}')


def test_a_batch_beyond_the_limit_is_refused_while_it_is_read(engine: Engine) -> None:
    with pytest.raises(TooLarge, match="more than 10 lines"):
        survey(judge(batch(*[{}] * 11), Rules("ours", CATALOGUE, "tiny", max_lines=10), engine))


def test_memory_stays_flat(engine: Engine) -> None:
    def peak(lines: int) -> int:
        file = batch(*[{}] * lines)
        tracemalloc.start()
        survey(judge(file, Rules("ours", CATALOGUE, "tiny"), engine))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(8000) < peak(2000) * 1.3


def take_in(engine: Engine, file: io.BytesIO, **options: Any) -> Receipt:
    submission = Submission(name="test", by="someone", **options)
    return take(file, submission, Rules("ours", CATALOGUE, "tiny"), JobQueue(engine))


def staged(engine: Engine) -> tuple[int, int, int]:
    with engine.begin() as connection:
        return tuple(connection.execute(select(func.count()).select_from(t)).scalar() for t in (BATCH, JOB, BAD_LINE))  # type: ignore[return-value]


def test_nothing_of_a_batch_with_a_bad_line_is_accepted(engine: Engine) -> None:
    with pytest.raises(BadInput, match="line 1501: steps must be between"):
        take_in(engine, batch(*[{}] * 1500, {"steps": 0}))
    assert staged(engine) == (0, 0, 0)


def test_bad_lines_are_skipped_on_request_and_kept_with_the_batch(engine: Engine) -> None:
    receipt = take_in(engine, batch({"n": 3, "seed": 5}, {"steps": 0, "n": 0}), skip_bad=True)
    assert (receipt.found.jobs, receipt.found.bad_lines, receipt.repeated) == (3, 1, False)
    assert staged(engine) == (1, 3, 2)
    with engine.begin() as connection:
        assert list(connection.execute(select(JOB.c.seed).order_by(JOB.c.id)).scalars()) == [5, 6, 7]


def test_a_batch_of_bad_lines_alone_is_refused_even_then(engine: Engine) -> None:
    with pytest.raises(BadInput):
        take_in(engine, batch({"steps": 0}), skip_bad=True)
    assert staged(engine) == (0, 0, 0)


def test_the_same_content_is_taken_once_unless_asked_again(engine: Engine) -> None:
    first = take_in(engine, batch({}, {"width": 64}))
    same = take_in(engine, io.BytesIO(batch({}, {"width": 64}).getvalue().replace(b": ", b":   ")))
    again = take_in(engine, batch({}, {"width": 64}), again=True)
    assert (same.batch_id, same.repeated) == (first.batch_id, True)
    assert again.batch_id != first.batch_id
    assert staged(engine)[:2] == (2, 4)


def test_an_edit_waits_for_the_line_it_edits(engine: Engine) -> None:
    take_in(engine, batch({"id": "a"}, {"image": "line:a"}))
    with engine.begin() as connection:
        parent, child = connection.execute(select(JOB.c.id, JOB.c.state, JOB.c.parent_job_id).order_by(JOB.c.id)).all()
    assert (parent.state, child.state, child.parent_job_id) == ("queued", "waiting", parent.id)


def test_a_failure_while_staging_leaves_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise DatabaseDown("disk full")

    monkeypatch.setattr(JobQueue, "stage_bad", full)
    with pytest.raises(DatabaseDown):
        take_in(engine, batch({}, {"steps": 0}), skip_bad=True)
    assert staged(engine) == (0, 0, 0)
