"""How a batch comes in: invisible until it is accepted, accepted whole, once for each content."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import Engine

from farm import staging
from farm.access import Access
from farm.errors import BadInput, Conflict, Fault, NotFound
from farm.job import CANCELS_CHILD, Cause, State
from farm.job_queue import JobQueue, NewJob
from tests.queue.conftest import SPEC, Desk

TABLES = ("batch", "job", "lane", "bad_line")


@dataclass(frozen=True)
class Bad:
    line: int
    field: str
    reason: str


def staged(desk: Desk, count: int = 5) -> int:
    batch = desk.queue.open_batch("ours", "a batch", "ann")
    desk.queue.stage(batch, [NewJob(line=line, spec=SPEC) for line in range(1, count + 1)])
    return batch


def rows(desk: Desk) -> int:
    return sum(desk.rows(f"SELECT count(*) AS n FROM {table}")[0]["n"] for table in TABLES)


def test_nothing_of_a_staged_batch_is_seen(desk: Desk) -> None:
    batch = staged(desk)
    desk.queue.stage_bad(batch, [Bad(6, "prompt", "is empty")])
    seen = desk.insights
    assert seen.batches("ours") == seen.jobs("ours") == seen.bad_lines("ours", batch) == []
    assert desk.queue.lanes() == []
    assert seen.batch("ours", batch) is seen.job("ours", 1) is None
    assert sum(seen.counts().values()) == 0
    for act in (desk.queue.cancel_batch, desk.queue.pause):
        with pytest.raises(NotFound):
            act(batch, "ann")
    assert desk.queue.accept(batch, None, lines=6) == batch
    found = seen.batch("ours", batch)
    assert found is not None
    assert (found["lines"], found["jobs"], found["bad_lines"], found["counts"]) == (6, 5, 1, {"queued": 5})
    assert seen.bad_lines("ours", batch)[0]["reason"] == "is empty"


def test_a_line_with_several_problems_is_one_bad_line(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "CHUNK", 2)
    batch = desk.queue.open_batch("ours", "a batch", "ann")
    desk.queue.stage_bad(batch, [Bad(1, field, "is wrong") for field in ("prompt", "seed", "steps")])
    desk.queue.stage_bad(batch, [Bad(2, "prompt", "is empty")])
    desk.queue.accept(batch, None)
    found = desk.insights.batch("ours", batch)
    assert found is not None
    assert (found["lines"], found["bad_lines"]) == (2, 2)
    assert len(desk.insights.bad_lines("ours", batch)) == 4


def test_accepting_twice_is_accepting_once(desk: Desk) -> None:
    batch = staged(desk)
    assert desk.queue.accept(batch, "content") == desk.queue.accept(batch, "content") == batch
    assert desk.kinds() == ["batch_open"]
    with pytest.raises(Conflict):
        desk.queue.stage(batch, [NewJob(line=9, spec=SPEC)])
    with pytest.raises(Conflict):
        desk.queue.discard(batch)


def test_the_same_content_is_the_same_batch_unless_asked_again(desk: Desk) -> None:
    first = desk.submit(count=3, content="same")
    before = rows(desk)
    assert desk.submit(count=3, content="same") == first
    assert rows(desk) == before
    assert desk.submit(count=3) != first
    Access(desk.engine).create_project("theirs")
    assert desk.submit(count=3, content="same", project="theirs") != first


def test_content_that_was_cancelled_may_come_again(desk: Desk) -> None:
    first = desk.submit(count=3, content="same")
    desk.queue.cancel_batch(first, "ann")
    assert desk.submit(count=3, content="same") != first


def test_a_twin_that_is_cancelled_just_then_does_not_stand_in_the_way(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, look = desk.submit(count=3, content="same"), desk.queue._same_content

    def too_late(*which: Any) -> int | None:
        desk.queue.cancel_batch(first, "ann")
        return look(*which)

    monkeypatch.setattr(desk.queue, "_same_content", too_late)
    second = desk.submit(count=3, content="same")
    assert second != first
    assert desk.states(second) == {"queued": 3}


def test_two_who_submit_the_same_at_once_get_one_batch(desk: Desk, another: Callable[[], Engine]) -> None:
    queues = [JobQueue(another(), desk.clock) for _ in range(4)]

    def submit(queue: JobQueue) -> int:
        batch = queue.open_batch("ours", "a batch", "ann")
        queue.stage(batch, [NewJob(line=1, spec=SPEC)])
        return queue.accept(batch, "same")

    with ThreadPoolExecutor(len(queues)) as pool:
        batches = list(pool.map(submit, queues))
    assert len(set(batches)) == 1
    assert len(desk.rows("SELECT * FROM batch")) == len(desk.rows("SELECT * FROM job")) == 1


def test_what_a_dead_process_staged_is_collected_but_not_what_a_slow_one_stages(desk: Desk) -> None:
    staged(desk, count=1500)
    desk.clock.now += 3000
    slow = staged(desk)
    desk.clock.now += 3000
    desk.queue.stage(slow, [NewJob(line=9, spec=SPEC)])
    desk.clock.now += 1000
    assert desk.queue.collect_abandoned(older_than_s=3600) == 1
    assert desk.queue.accept(slow, None) == slow
    assert desk.states(slow) == {"queued": 6}
    assert len(desk.rows("SELECT * FROM job")) == 6


def test_a_stager_that_was_taken_for_dead_is_told_and_its_number_is_not_given_again(desk: Desk) -> None:
    batch = staged(desk)
    desk.queue.discard(batch)
    assert rows(desk) == 0
    assert staged(desk) != batch
    with pytest.raises(Conflict, match="submit it again"):
        desk.queue.stage(batch, [NewJob(line=9, spec=SPEC)])
    with pytest.raises(Conflict):
        desk.queue.accept(batch, None)


def test_lines_refer_to_lines_before_and_after_them_across_chunks(desk: Desk) -> None:
    first = NewJob(line=1, spec=SPEC, parent_name="last")
    middle = [NewJob(line=n, spec=SPEC, name=f"n{n}") for n in range(2, 2500)]
    last = NewJob(line=2500, spec=SPEC, name="last", parent_name="n2")
    batch = desk.submit(first, *middle, last)
    assert desk.states(batch) == {"queued": 2498, "waiting": 2}
    found = {
        row["line"]: row for row in desk.rows("SELECT id, line, parent_job_id FROM job WHERE batch_id = :b", b=batch)
    }
    assert found[1]["parent_job_id"] == found[2500]["id"]
    assert found[2500]["parent_job_id"] == found[2]["id"]


@pytest.mark.parametrize("chunk", [1, 1000])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
@pytest.mark.parametrize("state", sorted(CANCELS_CHILD.keys() & {State.BLOCKED, State.FAILED, State.CANCELLED}))
def test_edits_of_an_edit_of_a_job_that_ends_badly_end_with_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, state: State, when: str, chunk: int
) -> None:
    monkeypatch.setattr(staging, "CHUNK", chunk)
    desk.submit(count=1)
    (lease,) = desk.claim()

    def end() -> None:
        if state is State.FAILED:
            desk.queue.fault(lease, Fault(Cause.BAD_INPUT, "broke"))
        else:
            desk.end(lease, state)

    if when == "before":
        end()
    batch = desk.queue.open_batch("ours", "edits", "ann")
    third = NewJob(line=1, spec=SPEC, parent_name="second")
    first = NewJob(line=2, spec=SPEC, name="first", parent_job_id=lease.job_id)
    second = NewJob(line=3, spec=SPEC, name="second", parent_name="first")
    desk.queue.stage(batch, [third, first, second, NewJob(line=4, spec=SPEC, name="alone")])
    if when == "meanwhile":
        end()
    desk.queue.accept(batch, None)
    assert desk.states(batch) == {"cancelled": 3, "queued": 1}
    found = {row["line"]: row for row in desk.rows("SELECT * FROM job WHERE batch_id = :b", b=batch)}
    assert found[2]["reason"] == f"job {lease.job_id}, which it edits, {CANCELS_CHILD[state]}"
    assert found[3]["reason"] == f"job {found[2]['id']}, which it edits, was cancelled"
    assert found[1]["reason"] == f"job {found[3]['id']}, which it edits, was cancelled"


def test_a_line_that_edits_no_line_refuses_the_batch(desk: Desk) -> None:
    batch = desk.queue.open_batch("ours", "a batch", "ann")
    desk.queue.stage(batch, [NewJob(line=4, spec=SPEC, parent_name="nobody")])
    with pytest.raises(BadInput, match=r"line 4 edits line:nobody"):
        desk.queue.accept(batch, None)
    assert desk.queue.lanes() == []


def test_two_lines_with_one_id_are_refused(desk: Desk) -> None:
    batch = desk.queue.open_batch("ours", "a batch", "ann")
    desk.queue.stage(batch, [NewJob(line=1, spec=SPEC, name="a"), NewJob(line=1, index=1, spec=SPEC, name="a")])
    with pytest.raises(BadInput, match="same id"):
        desk.queue.stage(batch, [NewJob(line=2, spec=SPEC, name="a")])


@pytest.mark.parametrize("project", ["theirs", "staging"])
def test_a_job_that_is_not_ours_to_see_cannot_be_edited(desk: Desk, project: str) -> None:
    Access(desk.engine).create_project("theirs")
    batch = desk.queue.open_batch(project if project == "theirs" else "ours", "a batch", "bob")
    desk.queue.stage(batch, [NewJob(line=1, spec=SPEC)])
    if project == "theirs":
        desk.queue.accept(batch, None)
    job = desk.rows("SELECT id FROM job")[0]["id"]
    mine = desk.queue.open_batch("ours", "mine", "ann")
    with pytest.raises(NotFound, match=f"no job {job}"):
        desk.queue.stage(mine, [NewJob(line=1, spec=SPEC, parent_job_id=job)])


def test_an_upload_is_given_to_the_lease(desk: Desk) -> None:
    upload = Access(desk.engine).add_upload("ours", "cat.png", "key-of-cat", "image/png", 64, 64, 100)
    desk.submit(NewJob(line=1, spec=SPEC, upload_id=upload))
    (lease,) = desk.claim()
    assert (lease.upload_id, lease.reference_key, lease.reference_mime) == (upload, "key-of-cat", "image/png")
