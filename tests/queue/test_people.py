"""What people do: cancel, retry, pause, priority, decisions; and what becomes of the children of a chain of edits."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection

from farm import audit, control, moves
from farm.control import UNTOUCHED_S
from farm.db import reading, transact
from farm.errors import BadInput, Conflict, Fault, NotFound
from farm.job import CANCELS_CHILD, Cause, State
from farm.job_queue import NewJob
from farm.ports import Lease
from tests.queue.conftest import SPEC, Desk, finished


def deeds(desk: Desk) -> list[tuple[str, str, str]]:
    audit.seal(desk.engine)
    with reading(desk.engine) as connection:
        assert audit.verify_chain(connection, lambda *head: True).wrong == ()
    return [(row["actor"], row["action"], row["subject"]) for row in audit.read(desk.engine)]


def fail(desk: Desk, lease: Lease) -> None:
    for _ in range(2):
        desk.queue.fault(lease, Fault(Cause.RENDER_ERROR, "no"), retry_s=0.0)
        (lease,) = [one for one in desk.claim() if one.job_id == lease.job_id]
    assert desk.queue.fault(lease, Fault(Cause.RENDER_ERROR, "no")) is State.FAILED


def test_cancelling_a_batch_ends_what_has_not_ended(desk: Desk) -> None:
    batch = desk.submit(count=1203)
    first, second = desk.claim(limit=2)
    assert desk.publish(first)
    assert desk.queue.cancel_batch(batch, "ann", "wrong prompt") == 1202
    assert desk.states(batch) == {"published": 1, "cancelled": 1202}
    assert desk.job(second.job_id)["reason"] == "wrong prompt"
    assert not desk.publish(second)
    assert desk.queue.lanes() == []
    assert desk.queue.cancel_batch(batch, "ann") == 0
    assert [deed for deed in deeds(desk) if deed[1] == "cancel"] == [("ann", "cancel", f"batch {batch}")]


def test_a_chain_longer_than_one_chunk_is_cancelled_whole_and_counted(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "CHUNK", 5)
    batch = chain(desk, 12)
    last = desk.rows("SELECT id FROM job WHERE name = 'l12'")[0]["id"]
    elsewhere = desk.submit(NewJob(line=1, spec=SPEC, parent_job_id=last))
    assert desk.queue.cancel_batch(batch, "ann") == 12
    assert desk.states(batch) == {"cancelled": 12}
    assert desk.states(elsewhere) == {"cancelled": 1}
    reasons = desk.rows("SELECT DISTINCT reason FROM job WHERE batch_id = :id", id=batch)
    assert [row["reason"] for row in reasons] == ["the batch was cancelled by ann"]


def test_cancelling_goes_on_where_a_process_died(desk: Desk) -> None:
    batch = desk.submit(NewJob(line=1, spec=SPEC, name="a"), NewJob(line=2, spec=SPEC, parent_name="a"), count=600)
    desk.queue._stop_batch(batch, "ann", "enough")
    assert desk.claim() == []
    assert desk.queue.finish_cancelled() == 0, "it may live yet"
    desk.clock.now += UNTOUCHED_S + 1
    desk.queue._cancel_some(batch, "enough")
    assert desk.queue.finish_cancelled() == 0, "it lives"
    desk.clock.now += UNTOUCHED_S + 1
    assert desk.queue.finish_cancelled() == 102
    desk.clock.now += UNTOUCHED_S + 1
    assert desk.queue.finish_cancelled() == 0
    assert desk.states(batch) == {"cancelled": 602}


def test_a_batch_that_fails_again_while_it_is_retried_is_retried_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = desk.submit(count=3)
    desk.sql("UPDATE job SET state = 'failed'")
    once, asked = desk.queue._retry_some, []

    def and_fail(ids: list[int], *rest: Any) -> int:
        asked.append(ids)
        assert len(asked) < 5
        done = once(ids, *rest)
        desk.sql("UPDATE job SET state = 'failed'")
        return done

    monkeypatch.setattr(desk.queue, "_retry_some", and_fail)
    monkeypatch.setattr(control, "CHUNK", 2)
    assert desk.queue.retry(batch_id=batch, by="ann") == 3
    assert [len(ids) for ids in asked] == [2, 1]


def test_a_job_is_cancelled_once_and_only_before_it_ends(desk: Desk) -> None:
    desk.submit(count=2)
    one, two = desk.claim()
    desk.end(one, State.PUBLISHED)
    assert not desk.queue.cancel_job(one.job_id, "ann")
    assert desk.queue.cancel_job(two.job_id, "ann")
    assert not desk.queue.cancel_job(two.job_id, "ann")
    with pytest.raises(NotFound):
        desk.queue.cancel_job(999, "ann")


def test_a_retry_forgives_old_faults_but_keeps_them(desk: Desk) -> None:
    batch = desk.submit(count=1)
    (lease,) = desk.claim()
    fail(desk, lease)
    assert desk.queue.retry(batch_id=batch, by="ann") == 1
    (again,) = desk.claim()
    assert again.attempt == 4
    assert desk.queue.fault(again, Fault(Cause.RENDER_ERROR, "no")) is State.QUEUED
    job = desk.insights.job("ours", lease.job_id)
    assert job is not None
    assert len(job["faults"]) == 4
    assert ("ann", "retry", f"job {lease.job_id}") in deeds(desk)


def test_a_retry_takes_only_what_failed(desk: Desk) -> None:
    batch = desk.submit(count=3)
    one, two, three = desk.claim()
    desk.end(one, State.PUBLISHED)
    desk.end(two, State.BLOCKED)
    fail(desk, three)
    assert desk.queue.retry(job_ids=[one.job_id, two.job_id, three.job_id], by="ann") == 1
    assert desk.states(batch) == {"published": 1, "blocked": 1, "queued": 1}
    with pytest.raises(BadInput, match="blocked"):
        desk.queue.retry(batch_id=batch, states=["blocked"], by="ann")


def test_a_retry_brings_back_what_was_cancelled_only_because_of_the_job(desk: Desk) -> None:
    batch = chain(desk, 4)
    (parent,) = desk.claim()
    elsewhere = desk.submit(NewJob(line=1, spec=SPEC, parent_job_id=parent.job_id))
    unwanted = desk.submit(NewJob(line=1, spec=SPEC, parent_job_id=parent.job_id), count=1)
    not_this = desk.submit(NewJob(line=1, spec=SPEC, parent_job_id=parent.job_id))
    desk.queue.cancel_job(desk.rows("SELECT id FROM job WHERE batch_id = :id", id=not_this)[0]["id"], "ann")
    fail(desk, parent)
    desk.queue.cancel_batch(unwanted, "ann")
    assert desk.states(batch) == {"failed": 1, "cancelled": 3}
    assert desk.queue.retry(batch_id=batch, by="ann") == 1
    assert desk.states(batch) == {"queued": 1, "waiting": 3}
    assert desk.states(elsewhere) == {"waiting": 1}
    assert desk.states(unwanted) == {"cancelled": 2}
    assert desk.states(not_this) == {"cancelled": 1}
    waits = desk.rows("SELECT reason FROM job WHERE batch_id = :id AND state = 'waiting' ORDER BY id", id=elsewhere)
    assert waits[0]["reason"] == f"waits for job {parent.job_id}, which it edits"
    while leases := desk.claim():
        for lease in leases:
            desk.end(lease, State.PUBLISHED)
    assert desk.states(batch) == {"published": 4}
    assert desk.states(elsewhere) == {"published": 1}


def test_a_batch_that_has_ended_is_neither_cancelled_nor_reordered(desk: Desk) -> None:
    batch = desk.submit(count=2)
    one, two = desk.claim()
    desk.end(one, State.PUBLISHED)
    desk.end(two, State.HELD)
    with pytest.raises(Conflict, match=f"batch {batch} has ended"):
        desk.queue.cancel_batch(batch, "ann")
    with pytest.raises(Conflict, match=f"batch {batch} has ended"):
        desk.queue.set_priority(batch, 5, "ann")
    for turn in (desk.queue.pause, desk.queue.resume):
        with pytest.raises(Conflict, match=f"batch {batch} has ended"):
            turn(batch, "ann")
    found = desk.insights.batch("ours", batch)
    assert found is not None
    assert (found["state"], found["reason"], found["priority"]) == ("settled", "", 0)
    assert not [deed for deed in deeds(desk) if deed[1] in ("cancel", "priority", "pause", "resume")]


def test_a_batch_that_ends_while_it_is_paused_is_settled_and_paused_again_by_a_retry(desk: Desk) -> None:
    batch = desk.submit(count=1)
    (lease,) = desk.claim()
    desk.queue.pause(batch, "ann")
    desk.queue.fault(lease, Fault(Cause.BAD_INPUT, "no"))

    def state() -> str:
        return str(desk.insights.batches("ours")[0]["state"])

    assert state() == "settled"
    with pytest.raises(Conflict, match=f"batch {batch} has ended"):
        desk.queue.resume(batch, "ann")
    desk.queue.retry(batch_id=batch, by="ann")
    assert state() == "paused"
    desk.queue.resume(batch, "ann")
    assert state() == "open"


def test_a_job_of_a_cancelled_batch_is_not_tried_again(desk: Desk) -> None:
    batch = desk.submit(count=2)
    (lease,) = desk.claim(limit=1)
    fail(desk, lease)
    desk.queue.cancel_batch(batch, "ann")
    with pytest.raises(Conflict, match="cancelled"):
        desk.queue.retry(batch_id=batch, by="ann")
    assert desk.states(batch) == {"failed": 1, "cancelled": 1}


def test_a_paused_batch_gives_no_job_even_to_who_saw_its_lane(desk: Desk) -> None:
    batch = desk.submit(count=2)
    (lane,) = desk.queue.lanes()
    (lease,) = desk.queue.claim(lane.id, "worker-1", 1, 30.0)
    desk.queue.pause(batch, "ann", "lunch")
    assert desk.queue.lanes() == []
    assert desk.queue.claim(lane.id, "worker-1", 1, 30.0) == []
    assert desk.publish(lease)
    found = desk.insights.batch("ours", batch)
    assert found is not None
    assert (found["state"], found["reason"], found["settled"]) == ("paused", "lunch", False)
    desk.queue.resume(batch, "ann")
    assert len(desk.claim()) == 1
    desk.queue.cancel_batch(batch, "ann")
    with pytest.raises(Conflict, match="cancelled"):
        desk.queue.resume(batch, "ann")


def test_a_batchs_priority_is_added_to_its_lines(desk: Desk) -> None:
    batch = desk.submit(NewJob(line=1, spec=SPEC, priority=2))
    desk.queue.set_priority(batch, 5, "ann")
    assert [lane.priority for lane in desk.queue.lanes()] == [7]
    with pytest.raises(NotFound):
        desk.queue.set_priority(batch + 1, 5, "ann")


def test_a_decision_names_the_artifact_that_was_seen(desk: Desk) -> None:
    desk.submit(count=1)
    (lease,) = desk.claim()
    desk.end(lease, State.HELD)
    artifact = desk.job(lease.job_id)["artifact_id"]
    with pytest.raises(Conflict, match="another artifact"):
        desk.queue.decide(lease.job_id, artifact + 1, "approve", "ann", "")
    with pytest.raises(BadInput, match="aprove"):
        desk.queue.decide(lease.job_id, artifact, "aprove", "ann", "")
    desk.queue.decide(lease.job_id, artifact, "reject", "ann", "ugly")
    assert desk.state(lease.job_id) == "rejected"
    desk.queue.decide(lease.job_id, artifact, "withdraw", "ann", "too hasty")
    assert desk.state(lease.job_id) == "held"
    assert not desk.queue.publish_approved(lease.job_id, 1, finished(lease, 1))


def chain(desk: Desk, length: int) -> int:
    first = NewJob(line=1, spec=SPEC, name="l1")
    rest = [NewJob(line=n, spec=SPEC, name=f"l{n}", parent_name=f"l{n - 1}") for n in range(2, length + 1)]
    return desk.submit(*reversed([first, *rest]))


def test_a_chain_of_edits_is_drawn_one_after_the_other(desk: Desk) -> None:
    batch = chain(desk, 3)
    parent = None
    for _ in range(3):
        (lease,) = desk.claim()
        assert lease.parent_job_id == (parent.job_id if parent else None)
        assert lease.reference_key == (finished(parent, 0).key if parent else None)
        desk.end(lease, State.PUBLISHED)
        parent = lease
    assert desk.states(batch) == {"published": 3}


def test_the_child_of_a_held_parent_waits_for_the_decision(desk: Desk) -> None:
    batch = chain(desk, 2)
    (lease,) = desk.claim()
    desk.end(lease, State.HELD)
    assert desk.claim() == []
    assert desk.states(batch) == {"held": 1, "waiting": 1}
    found = desk.insights.batch("ours", batch)
    assert found is not None
    assert found["waits"] == [
        {"state": "waiting", "reason": f"waits for job {lease.job_id}, which is held for a person", "jobs": 1}
    ]
    artifact = desk.job(lease.job_id)["artifact_id"]
    decision = desk.queue.decide(lease.job_id, artifact, "approve", "ann", "")
    assert desk.claim() == []
    reasons = [row["reason"] for row in desk.rows("SELECT reason FROM job WHERE state = 'waiting'")]
    assert reasons == [f"waits for job {lease.job_id}, which it edits"]
    desk.queue.publish_approved(lease.job_id, decision, finished(lease, 1, key="approved"))
    assert desk.claim()[0].reference_key == "approved"


@pytest.mark.parametrize("state", sorted(CANCELS_CHILD.keys() - {State.UNLISTED}))
def test_the_children_of_a_job_that_will_not_be_are_cancelled_and_name_it(desk: Desk, state: State) -> None:
    batch = chain(desk, 40)
    (lease,) = desk.claim()
    if state is State.FAILED:
        fail(desk, lease)
    elif state is State.REJECTED:
        desk.end(lease, State.HELD)
        desk.queue.decide(lease.job_id, desk.job(lease.job_id)["artifact_id"], "reject", "ann", "")
    else:
        desk.end(lease, state)
    assert desk.states(batch) == ({"cancelled": 40} if state is State.CANCELLED else {state: 1, "cancelled": 39})
    child = desk.rows("SELECT id, reason FROM job WHERE parent_job_id = :id", id=lease.job_id)[0]
    assert child["reason"] == f"job {lease.job_id}, which it edits, {CANCELS_CHILD[state]}"
    grandchild = desk.rows("SELECT reason FROM job WHERE parent_job_id = :id", id=child["id"])[0]
    assert grandchild["reason"] == f"job {child['id']}, which it edits, was cancelled"


def test_a_job_of_an_earlier_batch_can_be_edited_in_whatever_state_it_is(desk: Desk) -> None:
    desk.submit(count=4)
    done, gone, running, stopped = desk.claim()
    desk.end(done, State.PUBLISHED)
    desk.end(gone, State.BLOCKED)
    parents = [done, gone, running, stopped]
    batch = desk.submit(*(NewJob(line=n, spec=SPEC, parent_job_id=one.job_id) for n, one in enumerate(parents, 1)))
    assert desk.states(batch) == {"queued": 1, "cancelled": 1, "waiting": 2}
    desk.end(running, State.PUBLISHED)
    desk.queue.cancel_job(stopped.job_id, "ann")
    assert desk.states(batch) == {"queued": 2, "cancelled": 2}


@pytest.mark.parametrize("started", [False, True])
def test_the_child_of_a_withdrawn_parent_waits_again_and_is_drawn_only_after_its_approval(
    desk: Desk, started: bool
) -> None:
    batch = chain(desk, 2)
    (parent,) = desk.claim()
    desk.end(parent, State.PUBLISHED)
    late = desk.claim() if started else []
    artifact = desk.job(parent.job_id)["artifact_id"]
    desk.queue.decide(parent.job_id, artifact, "withdraw", "ann", "a complaint")
    assert desk.claim() == []
    assert desk.states(batch) == {"held": 1, "waiting": 1}
    for lease in late:
        assert desk.queue.heartbeat(lease.owner, [(lease.job_id, lease.attempt)], 30.0) == set()
        assert not desk.publish(lease)
    found = desk.insights.batch("ours", batch)
    assert found is not None
    assert found["waits"][0]["reason"] == f"waits for job {parent.job_id}, which is held for a person"
    decision = desk.queue.decide(parent.job_id, artifact, "approve", "ann", "")
    desk.queue.publish_approved(parent.job_id, decision, finished(parent, 1, key="approved"))
    (child,) = desk.claim()
    assert child.reference_key == "approved"


@pytest.mark.parametrize("started", [False, True])
def test_the_child_of_an_unlisted_parent_is_cancelled(desk: Desk, started: bool) -> None:
    batch = chain(desk, 3)
    (parent,) = desk.claim()
    desk.end(parent, State.PUBLISHED)
    if started:
        assert len(desk.claim()) == 1
    unlist(desk, parent)
    assert desk.claim() == []
    assert desk.states(batch) == {"unlisted": 1, "cancelled": 2}


@pytest.mark.parametrize(("word", "state"), [("held", State.WAITING), ("unlisted", State.CANCELLED)])
def test_a_failed_child_tried_again_after_its_parent_was_withdrawn_is_not_drawn(
    desk: Desk, word: str, state: State
) -> None:
    chain(desk, 2)
    (parent,) = desk.claim()
    desk.end(parent, State.PUBLISHED)
    (child,) = desk.claim()
    fail(desk, child)
    if word == "held":
        desk.queue.decide(parent.job_id, desk.job(parent.job_id)["artifact_id"], "withdraw", "ann", "")
    else:
        unlist(desk, parent)
    assert desk.state(child.job_id) == "failed"
    assert desk.queue.retry(job_ids=[child.job_id], by="ann") == 1
    assert desk.claim() == []
    assert desk.state(child.job_id) == state


def unlist(desk: Desk, lease: Lease) -> None:
    """As a rescan does."""

    def work(connection: Connection) -> None:
        job = moves.lock(connection, [lease.job_id])[lease.job_id]
        moves.apply(connection, [moves.Move(job, State.UNLISTED, "a later policy")], desk.clock())

    transact(desk.engine, work)


def test_a_parent_published_while_its_child_is_staged_releases_it(desk: Desk) -> None:
    desk.submit(count=1)
    (lease,) = desk.claim()
    batch = desk.queue.open_batch("ours", "later", "ann")
    desk.queue.stage(batch, [NewJob(line=1, spec=SPEC, parent_job_id=lease.job_id)])
    desk.end(lease, State.PUBLISHED)
    assert desk.claim() == []
    desk.queue.accept(batch, None)
    assert len(desk.claim()) == 1
