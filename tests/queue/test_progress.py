"""How far running jobs are: believed while the lease stands; and previews, of which nothing follows for the job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from farm.errors import Fault
from farm.job import Cause, State
from farm.ports import Lease, Outcome, Signed, Stage, Step
from tests.queue.conftest import Desk, finished, frame_of, sha, verdict
from tests.queue.test_law1 import forge

SIGNED = Signed(b"signed", "image/png", sha("manifest"), "urn:c2pa:1")


@pytest.fixture
def lease(desk: Desk) -> Lease:
    desk.submit(count=2)
    return desk.claim()[0]


def tell(desk: Desk, lease: Lease, step: int) -> None:
    desk.queue.tell_steps([(lease, Step(lease.job_id, lease.attempt, step, 8))])


def running(desk: Desk, project: str = "ours") -> list[tuple[int, int, bool]]:
    return [(row["job_id"], row["step"], bool(row["preview"])) for row in desk.insights.running(project, 10)]


def judged(desk: Desk, lease: Lease, outcome: Outcome = Outcome.ALLOW, subject: str = "preview") -> int:
    (verdict_id,) = desk.queue.record([(lease, verdict(sha(subject), outcome, Stage.PREVIEW, "as a preview"))])
    assert verdict_id is not None
    return verdict_id


def shown(desk: Desk, lease: Lease) -> bytes | None:
    found = desk.insights.preview(lease.project_id, lease.job_id)
    return bytes(found["preview"]) if found else None


def verdicts(desk: Desk) -> Sequence[Any]:
    return desk.rows("SELECT * FROM verdict ORDER BY id")


def test_the_newest_step_is_told_and_nothing_is_kept_for_ever(desk: Desk, lease: Lease) -> None:
    before = len(desk.kinds())
    tell(desk, lease, 3)
    tell(desk, lease, 5)
    assert running(desk) == [(lease.job_id, 5, False)]
    assert len(desk.kinds()) == before
    batch = desk.insights.batch("ours", lease.batch_id)
    assert batch is not None
    assert [(row["job_id"], row["step"], row["total"]) for row in batch["running"]] == [(lease.job_id, 5, 8)]
    job = desk.insights.job("ours", lease.job_id)
    assert job is not None
    assert (job["progress"]["step"], job["progress"]["preview"]) == (5, False)
    assert desk.queue.forget_steps() == 0


def test_of_one_batch_as_many_are_told_however_many_others_run(desk: Desk, lease: Lease) -> None:
    desk.submit(count=1)
    (later,) = [one for one in desk.claim() if one.batch_id != lease.batch_id]
    tell(desk, lease, 1)
    tell(desk, later, 2)
    (found,) = desk.insights.running("ours", 1, later.batch_id)
    assert (found["job_id"], found["step"]) == (later.job_id, 2)


def test_another_project_sees_none_of_it(desk: Desk, lease: Lease) -> None:
    tell(desk, lease, 3)
    assert desk.queue.keep_preview(lease, judged(desk, lease), SIGNED)
    assert running(desk) == [(lease.job_id, 3, True)]
    assert running(desk, "theirs") == []
    assert desk.insights.preview("theirs", lease.job_id) is None


@pytest.mark.parametrize("state", [State.PUBLISHED, State.HELD, State.BLOCKED, State.CANCELLED])
def test_what_is_left_of_a_job_that_ended_is_neither_believed_nor_kept(desk: Desk, lease: Lease, state: State) -> None:
    tell(desk, lease, 3)
    assert desk.queue.keep_preview(lease, judged(desk, lease), SIGNED)
    desk.end(lease, state)
    assert running(desk) == []
    assert shown(desk, lease) is None
    job = desk.insights.job("ours", lease.job_id)
    assert job is not None
    assert job["progress"] is None
    assert desk.queue.forget_steps() == 1
    assert desk.rows("SELECT * FROM progress") == []


def test_a_lease_that_ran_out_shows_nothing_though_no_dispatcher_has_noticed(desk: Desk, lease: Lease) -> None:
    tell(desk, lease, 3)
    assert desk.queue.keep_preview(lease, judged(desk, lease), SIGNED)
    desk.clock.now += 3600
    assert running(desk) == []
    assert shown(desk, lease) is None
    assert desk.state(lease.job_id) == "leased"


def test_a_lost_lease_tells_nothing_and_shows_nothing(desk: Desk, lease: Lease) -> None:
    tell(desk, lease, 3)
    allowed = judged(desk, lease)
    assert desk.queue.keep_preview(lease, allowed, SIGNED)
    desk.clock.now += 3600
    desk.queue.expire()
    again = next(one for one in desk.claim(owner="worker-2") if one.job_id == lease.job_id)
    assert running(desk) == [], "the row is of the attempt before"
    tell(desk, lease, 4)
    assert not desk.queue.keep_preview(lease, allowed, SIGNED)
    assert desk.queue.record([(lease, verdict(sha("late"), stage=Stage.PREVIEW))]) == [None]
    assert "superseded" not in desk.kinds()
    assert running(desk) == []
    tell(desk, again, 1)
    assert running(desk) == [(lease.job_id, 1, False)], "the preview went with its attempt"
    assert not desk.queue.keep_preview(again, allowed, SIGNED), "its verdict is of the attempt before"


@pytest.mark.parametrize("outcome", [Outcome.BLOCK, Outcome.REVIEW])
def test_a_preview_that_is_not_allowed_is_recorded_and_touches_nothing(
    desk: Desk, lease: Lease, outcome: Outcome
) -> None:
    tell(desk, lease, 3)
    refused = judged(desk, lease, outcome)
    assert not desk.queue.keep_preview(lease, refused, SIGNED)
    assert shown(desk, lease) is None
    assert [(row["stage"], row["outcome"]) for row in verdicts(desk)] == [("preview", outcome)]
    assert desk.state(lease.job_id) == "leased"
    assert desk.publish(lease)
    assert desk.state(lease.job_id) == "published"
    (listed,) = desk.insights.jobs("ours", lease.batch_id, "published")
    assert (listed["verdict"], listed["reason"]) == ("allow", "")


@pytest.mark.parametrize("when", ["before", "after", "in the attempt before"])
@pytest.mark.parametrize("stage", [Stage.PROMPT, Stage.INPUT, Stage.FRAME])
def test_a_job_that_the_gate_doubts_shows_no_preview(desk: Desk, lease: Lease, stage: Stage, when: str) -> None:
    if when == "after":
        tell(desk, lease, 3)
        assert desk.queue.keep_preview(lease, judged(desk, lease), SIGNED)
    desk.queue.record([(lease, verdict(sha("doubted"), Outcome.REVIEW, stage))])
    if when == "in the attempt before":
        desk.queue.fault(lease, Fault(Cause.SIGNER_DOWN, "away"), retry_s=0.0)
        lease = next(one for one in desk.claim() if one.job_id == lease.job_id)
    if when != "after":
        tell(desk, lease, 3)
        assert not desk.queue.keep_preview(lease, judged(desk, lease), SIGNED)
    assert shown(desk, lease) is None
    assert running(desk) == [(lease.job_id, 3, False)]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_job_beside_a_blocked_one_shows_no_preview(desk: Desk, lease: Lease, when: str) -> None:
    if when == "after":
        tell(desk, lease, 3)
        assert desk.queue.keep_preview(lease, judged(desk, lease), SIGNED)
    desk.sql("INSERT INTO doubted VALUES (:id, 'ours', 'beside another', 0)", id=lease.job_id)
    if when == "before":
        tell(desk, lease, 3)
        assert not desk.queue.keep_preview(lease, judged(desk, lease), SIGNED)
    assert shown(desk, lease) is None
    assert running(desk) == [(lease.job_id, 3, False)]


def test_a_doubt_that_comes_while_a_preview_is_kept_is_not_overlooked(
    desk: Desk, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked for under the job's lock: whoever doubts takes that first."""
    tell(desk, lease, 3)
    allowed, held = judged(desk, lease), desk.queue._held

    def doubted_meanwhile(connection: Connection, leases: Sequence[Lease]) -> dict[int, Any]:
        found = held(connection, leases)
        said = "INSERT INTO verdict (project_id, job_id, attempt, stage, subject, outcome, policy, encoder, reason,"
        said += " gang, weights, created_at) VALUES ('ours', :job, 1, 'frame', 'x', 'review', 'p', 'e', '', '', '', 0)"
        connection.execute(text(said), {"job": lease.job_id})
        return found

    monkeypatch.setattr(desk.queue, "_held", doubted_meanwhile)
    assert not desk.queue.keep_preview(lease, allowed, SIGNED)


def test_only_an_allowing_verdict_on_a_preview_shows_one(desk: Desk, lease: Lease) -> None:
    tell(desk, lease, 3)
    (frame, prompt) = desk.queue.record([(lease, verdict(sha("x"))), (lease, verdict(sha("x"), stage=Stage.PROMPT))])
    desk.submit(count=1)
    (other,) = desk.claim()
    for verdict_id in (frame, prompt, judged(desk, other), 999):
        assert verdict_id is not None
        assert not desk.queue.keep_preview(lease, verdict_id, SIGNED)
    assert shown(desk, lease) is None
    assert desk.queue.keep_preview(lease, judged(desk, lease), SIGNED)
    assert shown(desk, lease) == b"signed"
    desk.queue.drop_preview(lease)
    assert shown(desk, lease) is None


def test_the_allowing_verdict_of_a_preview_publishes_nothing(desk: Desk, lease: Lease) -> None:
    said = judged(desk, lease)
    with pytest.raises(IntegrityError, match="law 1"):
        forge(desk, lease, verdict_id=said, frame=sha("preview"))
    assert desk.queue.publish([finished(lease, said, frame_sha256=sha("preview"))]) == [False]
    assert desk.state(lease.job_id) == "queued", "refused by the database, and the job is tried again"


def test_an_allowed_preview_does_not_outweigh_a_doubted_frame(desk: Desk, lease: Lease) -> None:
    judged(desk, lease, subject=f"frame {lease.job_id}/{lease.attempt}")
    assert desk.publish(lease, Outcome.REVIEW)
    assert desk.state(lease.job_id) == "held"
    stages = {row["stage"]: row["outcome"] for row in verdicts(desk) if row["subject"] == frame_of(lease)}
    assert stages == {"preview": "allow", "frame": "review"}
