"""A confirmed block holds the jobs beside it, and many of them pause their batch, where the policy says so."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine

from farm import aftermath, audit, rules
from farm.aftermath import Clauses, Spike, clauses_of
from farm.db import transact
from farm.errors import Fault
from farm.job import Cause
from farm.job_queue import Finished, NewJob
from farm.ports import Lease, Outcome, Stage
from tests.queue.conftest import SPEC, Desk, finished, frame_of, verdict

HOLD = {"name": "p", "siblings": "hold", "concepts": [{"name": "mild", "siblings": "leave"}, {"name": "grave"}]}


def policy(desk: Desk, document: dict[str, Any]) -> None:
    text = json.dumps(document, sort_keys=True)
    transact(desk.engine, lambda connection: rules.put(connection, "active", text, "ann", "ours", desk.clock()))


def judge(desk: Desk, lease: Lease, outcome: Outcome, **more: Any) -> int | None:
    """By the policy in force."""
    hash_ = desk.rows("SELECT policy FROM in_force WHERE role = 'active'")[0]["policy"]
    said = replace(verdict(frame_of(lease), outcome), policy=hash_, concept="grave", **more)
    return desk.queue.record([(lease, said)], gang="gang-1", weights="w")[0]


def publish(desk: Desk, lease: Lease, outcome: Outcome = Outcome.ALLOW) -> bool:
    verdict_id = judge(desk, lease, outcome)
    return verdict_id is not None and desk.queue.publish([finished(lease, verdict_id, outcome)])[0]


def line_of(count: int, line: int = 1) -> list[NewJob]:
    return [NewJob(line=line, spec=SPEC, index=index) for index in range(count)]


def states(desk: Desk, leases: list[Lease]) -> list[str]:
    return [desk.state(lease.job_id) for lease in leases]


def reason(desk: Desk, lease: Lease) -> str:
    return str(desk.job(lease.job_id)["reason"])


def test_a_blocked_frame_holds_the_rest_of_its_line_done_or_still_to_come(desk: Desk) -> None:
    policy(desk, HOLD)
    desk.submit(*line_of(4), *line_of(1, line=2))
    done, bad, drawn, queued, other = desk.claim()
    desk.queue.fault(queued, Fault(Cause.RAY_GONE, "away"), retry_s=0.0)
    assert publish(desk, done)
    assert publish(desk, other)
    judge(desk, bad, Outcome.BLOCK)
    assert states(desk, [done, bad, drawn, queued, other]) == ["held", "blocked", "leased", "queued", "published"]
    assert f"held beside job {bad.job_id}: it was blocked" in reason(desk, done)
    (queued,) = desk.claim()
    for lease in (drawn, queued):
        assert publish(desk, lease)
    assert states(desk, [drawn, queued]) == ["held", "held"]
    assert reason(desk, queued) == reason(desk, done)
    audit.seal(desk.engine)
    (told,) = [row for row in audit.read(desk.engine) if row["action"] == "hold beside"]
    assert told["data"] == {"held": [done.job_id], "coming": [drawn.job_id, queued.job_id]}


def test_an_edit_that_is_blocked_holds_what_it_was_edited_from(desk: Desk) -> None:
    policy(desk, HOLD)
    edit = replace(SPEC, edit=True)
    elsewhere = desk.submit(NewJob(line=1, spec=SPEC))
    (first,) = desk.claim()
    assert publish(desk, first)
    desk.submit(
        NewJob(line=1, spec=edit, name="a", parent_job_id=first.job_id),
        NewJob(line=2, spec=edit, name="b", parent_name="a"),
        NewJob(line=3, spec=edit, parent_name="b"),
        NewJob(line=4, spec=edit, parent_name="a"),
    )
    chain = []
    for _ in range(2):
        (lease,) = desk.claim(limit=1)
        chain.append(lease)
        assert publish(desk, lease)
    third, beside = sorted(desk.claim(), key=lambda lease: lease.parent_job_id != chain[1].job_id)
    assert publish(desk, beside)
    judge(desk, third, Outcome.BLOCK)
    assert states(desk, [*chain, third]) == ["held", "held", "blocked"]
    assert states(desk, [first, beside]) == ["published", "published"], "of another batch, and of another branch"
    assert desk.states(elsewhere) == {"published": 1}


def test_a_persons_rejection_confirms_a_block_and_an_approved_one_stands(desk: Desk) -> None:
    policy(desk, HOLD)
    desk.submit(*line_of(3))
    shown, doubted, approved = desk.claim()
    assert publish(desk, shown)
    assert publish(desk, doubted, Outcome.REVIEW)
    assert publish(desk, approved, Outcome.REVIEW)
    artifact = desk.job(approved.job_id)["artifact_id"]
    said = desk.queue.decide(approved.job_id, artifact, "approve", "ann", "fine")
    assert desk.queue.publish_approved(approved.job_id, said, finished(approved, 1))
    desk.queue.decide(doubted.job_id, desk.job(doubted.job_id)["artifact_id"], "reject", "bo", "no")
    assert states(desk, [shown, doubted, approved]) == ["held", "rejected", "published"]
    assert "a person rejected it" in reason(desk, shown)


def test_whichever_comes_first_the_block_or_the_publication_beside_it_a_person_sees_it(
    desk: Desk, another: Callable[[], Engine]
) -> None:
    policy(desk, HOLD)
    other = replace(desk, engine=another())
    with ThreadPoolExecutor(2) as pool:
        for line in range(1, 9):
            desk.submit(*line_of(2, line=line))
            shown, bad = desk.claim()
            verdict_id = judge(desk, shown, Outcome.ALLOW)
            assert verdict_id is not None
            began = threading.Barrier(2)

            def publish_it(done: Finished = finished(shown, verdict_id), began: threading.Barrier = began) -> None:
                began.wait(10)
                assert desk.queue.publish([done]) == [True]

            def block_it(bad: Lease = bad, began: threading.Barrier = began) -> None:
                began.wait(10)
                judge(other, bad, Outcome.BLOCK)

            for done in [pool.submit(publish_it), pool.submit(block_it)]:
                done.result(30)
            assert states(desk, [shown, bad]) == ["held", "blocked"]


@pytest.mark.parametrize("how", ["policy", "concept", "prompt", "no policy"])
def test_nothing_else_holds_anything(desk: Desk, how: str) -> None:
    if how != "no policy":
        policy(desk, HOLD | {"siblings": "leave"} if how == "policy" else HOLD)
    desk.submit(*line_of(2))
    shown, bad = desk.claim()
    if how == "no policy":
        assert desk.publish(shown)
        desk.judge(bad, Outcome.BLOCK)
    else:
        assert publish(desk, shown)
        changed: dict[str, Any] = {"concept": "mild"} if how == "concept" else {}
        changed |= {"stage": Stage.PROMPT} if how == "prompt" else {}
        hash_ = desk.rows("SELECT policy FROM in_force")[0]["policy"]
        said = replace(verdict("e" * 64, Outcome.BLOCK), policy=hash_, **({"concept": "grave"} | changed))
        desk.queue.record([(bad, said)], gang="gang-1")
    assert states(desk, [shown, bad]) == ["published", "blocked"]


SPIKE = {"name": "p", "spike": {"share": 0.5, "of_last": 4, "at_least": 3}}


def paused(desk: Desk, batch: int) -> str:
    row = desk.rows("SELECT state, reason FROM batch WHERE id = :id", id=batch)[0]
    return str(row["reason"]) if row["state"] == "paused" else ""


def test_a_spike_pauses_the_batch_once_for_the_same_frames(desk: Desk) -> None:
    policy(desk, SPIKE)
    batch, other = desk.submit(count=12), desk.submit(count=2)
    leases = [lease for lease in desk.claim(limit=11) if lease.batch_id == batch]
    ends = iter(leases)
    judge(desk, next(ends), Outcome.BLOCK)
    judge(desk, next(ends), Outcome.BLOCK)
    assert paused(desk, batch) == "", "two are less than three"
    judge(desk, next(ends), Outcome.BLOCK)
    assert paused(desk, batch).startswith("3 of its last 3 frames were blocked, and 50% pause a batch")
    assert paused(desk, other) == ""
    assert "batch_paused" in desk.kinds()
    desk.queue.resume(batch, "ann")
    judge(desk, next(ends), Outcome.BLOCK)
    judge(desk, next(ends), Outcome.BLOCK)
    assert paused(desk, batch) == "", "those before count no more"
    assert publish(desk, next(ends))
    assert paused(desk, batch) == ""
    judge(desk, next(ends), Outcome.BLOCK)
    assert paused(desk, batch).startswith("3 of its last 4 frames")
    audit.seal(desk.engine)
    told = [(row["actor"], row["action"]) for row in audit.read(desk.engine) if row["subject"] == f"batch {batch}"]
    assert [one for one in told if one[1] != "submit"] == [
        ("the gate", "pause"),
        ("ann", "resume"),
        ("the gate", "pause"),
    ]


def test_only_the_last_frames_count_and_a_batch_without_more_to_come_is_not_paused(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aftermath, "PAGE", 2)
    policy(desk, SPIKE)
    batch = desk.submit(count=8)
    leases = desk.claim(limit=8)
    for lease, outcome in zip(leases, "baaaabab", strict=True):
        before = paused(desk, batch)
        if outcome == "b":
            judge(desk, lease, Outcome.BLOCK)
        else:
            assert publish(desk, lease)
        assert before == ""
    assert paused(desk, batch) == "", "its last frame was its last job"
    policy(desk, SPIKE | {"name": "q"})
    second = desk.submit(count=9)
    for lease, outcome in zip(desk.claim(limit=8), "baaaabab", strict=True):
        if outcome == "b":
            judge(desk, lease, Outcome.BLOCK)
        else:
            assert publish(desk, lease)
    assert paused(desk, second).startswith("2 of its last 4 frames")


@given(st.lists(st.booleans()), st.floats(0.01, 1), st.integers(1, 10), st.integers(1, 10))
def test_a_spike_is_what_its_words_say(blocked: list[bool], share: float, of_last: int, at_least: int) -> None:
    last = blocked[:of_last]
    enough = len(last) >= at_least and sum(last) / max(1, len(last)) >= share - 1e-12
    found = Spike(share, of_last, at_least).reached(blocked)
    assert found == enough or abs(sum(last) - share * len(last)) < 1e-9
    if found:
        assert Spike(share, of_last, at_least).reached([True, *blocked[: of_last - 1]]), "one more never calms it"


def test_a_document_says_what_follows_by_policy_and_by_concept() -> None:
    assert clauses_of(json.dumps({"name": "p"})) == Clauses()
    found = clauses_of(json.dumps(HOLD | SPIKE))
    assert [found.holds(concept) for concept in ("mild", "grave", "a-list", None)] == [False, True, True, True]
    assert found.spike == Spike(0.5, 4, 3)
