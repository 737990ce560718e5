"""The children of a job that is moved: more of them, or a longer chain, than one transaction takes along."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Connection, Engine

from farm import moves
from farm.errors import Fault
from farm.job import Cause, State
from farm.job_queue import JobQueue, NewJob
from farm.ports import Lease
from tests.queue.conftest import SPEC, Desk
from tests.queue.test_people import chain

EDITS = 10


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moves, "FOLLOWING", 4)
    monkeypatch.setattr(moves, "ROUND", 1)


def edited(desk: Desk) -> tuple[Lease, int]:
    """A job that is drawn, and the batch of those that edit it."""
    desk.submit(count=1)
    (parent,) = desk.claim()
    return parent, desk.submit(*(NewJob(line=n, spec=SPEC, parent_job_id=parent.job_id) for n in range(EDITS)))


def fail(desk: Desk, lease: Lease) -> None:
    assert desk.queue.fault(lease, Fault(Cause.BAD_INPUT, "no")) is State.FAILED


def marks(desk: Desk) -> int:
    return len(desk.rows("SELECT job_id FROM unfollowed"))


def test_many_children_are_released_in_chunks_whoever_dies_between_two(
    desk: Desk, another: Callable[[], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, batch = edited(desk)
    desk.end(parent, State.PUBLISHED)
    assert desk.states(batch) == {"queued": 4, "waiting": EDITS - 4}
    once, times = moves.follow, 0

    def dies(connection: Connection, job_id: int, now: float) -> None:
        nonlocal times
        times += 1
        once(connection, job_id, now)
        if times == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(moves, "follow", dies)
    with pytest.raises(KeyboardInterrupt):
        desk.queue.follow()
    monkeypatch.setattr(moves, "follow", once)
    assert desk.states(batch) == {"queued": 4, "waiting": EDITS - 4}, "the first chunk had them already"
    assert JobQueue(another(), desk.clock).follow() == 1
    assert desk.states(batch) == {"queued": EDITS}
    assert marks(desk) == 0
    assert desk.queue.follow() == 0
    for lease in desk.claim(limit=EDITS):
        desk.end(lease, State.PUBLISHED)
    assert desk.states(batch) == {"published": EDITS}


def test_a_long_chain_ends_with_its_first_job_link_by_link(desk: Desk) -> None:
    batch = chain(desk, 12)
    (lease,) = desk.claim()
    desk.queue.cancel_job(lease.job_id, "ann")
    assert desk.states(batch)["waiting"] > 0
    assert desk.queue.follow() > 1
    assert desk.states(batch) == {"cancelled": 12}
    for row in desk.rows("SELECT * FROM job WHERE parent_job_id IS NOT NULL"):
        assert row["reason"] == f"job {row['parent_job_id']}, which it edits, was cancelled"
    assert marks(desk) == 0


@pytest.mark.parametrize("when", ["each time", "at the end"])
def test_what_follows_late_ends_where_it_belongs(desk: Desk, when: str) -> None:
    parent, batch = edited(desk)

    def meanwhile() -> None:
        if when == "each time":
            desk.queue.follow()

    fail(desk, parent)
    meanwhile()
    assert desk.queue.retry(job_ids=[parent.job_id], by="ann") == 1
    meanwhile()
    (again,) = desk.claim(limit=1)
    desk.end(again, State.PUBLISHED)
    desk.queue.follow()
    assert desk.states(batch) == {"queued": EDITS}


def test_those_that_were_cancelled_and_late_to_come_back_go_on_with_a_parent_that_is_published(desk: Desk) -> None:
    parent, batch = edited(desk)
    fail(desk, parent)
    desk.queue.follow()
    assert desk.states(batch) == {"cancelled": EDITS}
    desk.queue.retry(job_ids=[parent.job_id], by="ann")
    (again,) = desk.claim(limit=1)
    desk.end(again, State.PUBLISHED)
    assert desk.states(batch)["cancelled"] > 0
    desk.queue.follow()
    assert desk.states(batch) == {"queued": EDITS}


def test_all_that_wait_say_that_a_person_is_asked(desk: Desk) -> None:
    parent, batch = edited(desk)
    desk.end(parent, State.HELD)
    desk.queue.follow()
    found = desk.insights.batch("ours", batch)
    assert found is not None
    reason = f"waits for job {parent.job_id}, which is held for a person"
    assert found["waits"] == [{"state": "waiting", "reason": reason, "jobs": EDITS}]


def test_a_mark_of_a_job_that_is_gone_is_forgotten(desk: Desk) -> None:
    desk.sql("INSERT INTO unfollowed (job_id, project_id, after) VALUES (999, 'ours', 0)")
    assert desk.queue.follow() == 1
    assert marks(desk) == 0
