"""Batches as strangers write them."""

from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, func, insert, select

from actors import cards
from farm.db import DatabaseDown, connect
from farm.errors import BadInput, TooLarge
from farm.intake import (
    MAX_LINE,
    MAX_SHAPES,
    MAX_SHOWN,
    Receipt,
    Rules,
    Submission,
    judge,
    read_lines,
    refusal,
    survey,
    take,
)
from farm.job_queue import JobQueue
from farm.lines import BadLine, Line
from farm.tables import BAD_LINE, BATCH, JOB, PROJECT, UPLOAD
from tests.cards import CATALOGUE


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_lines_are_split_at_newlines_alone(data: bytes) -> None:
    expected = [line.strip() for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
    assert [text for _, text in read_lines(io.BytesIO(data))] == expected


def test_a_long_line_is_refused_and_the_next_one_read() -> None:
    file = io.BytesIO(b"x" * (3 * MAX_LINE) + b"\nlast")
    assert list(read_lines(file)) == [(1, None), (2, b"last")]


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = connect(database_url)
    with engine.begin() as connection:
        connection.execute(insert(PROJECT), [{"id": name, "created_at": 0.0} for name in ("ours", "theirs")])
        upload = {"id": "up_" + "a" * 32, "project_id": "theirs", "name": "a.png", "key": "a", "mime": "image/png"}
        connection.execute(insert(UPLOAD), upload | {"width": 1, "height": 1, "bytes": 1, "created_at": 0.0})
    yield engine
    engine.dispose()


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


def test_an_edit_without_a_size_keeps_that_of_what_it_edits(engine: Engine) -> None:
    with engine.begin() as connection:
        upload = {"id": "up_" + "b" * 32, "project_id": "ours", "name": "b.png", "key": "b", "mime": "image/png"}
        connection.execute(insert(UPLOAD), upload | {"width": 3000, "height": 2000, "bytes": 1, "created_at": 0.0})
    take_in(engine, batch({"width": 160, "height": 96}))
    with engine.begin() as connection:
        job = connection.execute(select(JOB.c.id)).scalar()
    edits: list[dict[str, Any]] = [
        {"id": "wide", "aspect_ratio": "16:9"},
        {"id": "again", "image": "line:wide"},
        {"image": "line:again", "model": "large"},
        {"image": f"job:{job}"},
        {"image": "up_" + "b" * 32},
        {"image": "up_" + "b" * 32, "height": 64},
        {"image": "line:wide", "aspect_ratio": "1:1"},
    ]
    catalogue = CATALOGUE | {"large": replace(cards.KONTEXT, name="large", licence=cards.APACHE)}
    (lines,) = judge(batch(*edits), Rules("ours", catalogue, "tiny"), engine)
    sizes = [(line.spec.width, line.spec.height) for line in lines if isinstance(line, Line)]
    of_ours = [(176, 96), (176, 96), (432, 240), (160, 96), (160, 112)]
    assert sizes == [*of_ours, (128, 64), (128, 128)]


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


def test_a_batch_holds_so_many_shapes_and_any_number_of_lines(engine: Engine) -> None:
    sweep = [{"width": 64 + 16 * n, "steps": steps} for n in range(5) for steps in range(1, 21)]
    lines = [size | {"priority": priority} for priority in range(-5, 6) for size in sweep]
    assert len(lines) > MAX_SHAPES
    again = [line | {"seed": 1} for line in lines[:50]]
    found = judged(engine, batch(*lines, *again, {"guidance": 1.0, "width": 64, "steps": 1, "priority": -5}))
    good = [line.number for line in found if isinstance(line, Line)]
    assert good == [*range(1, MAX_SHAPES + 1), *range(len(lines) + 1, len(lines) + 52)]
    (bad,) = next(line for line in found if not isinstance(line, Line))
    assert (bad.line, bad.field) == (MAX_SHAPES + 1, "line")
    assert "1,000 different combinations of model, size, steps, editing and priority" in bad.reason


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
