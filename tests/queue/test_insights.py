"""The read model and the keys: every answer is of one project (law 11)."""

from __future__ import annotations

import pytest

from farm.access import Access
from farm.errors import BadInput, NotFound
from farm.insights import COUNTED_FOR_S
from farm.job import State
from farm.job_queue import NewJob
from farm.ports import Lease, Outcome, Stage
from tests.queue.conftest import SPEC, Desk, verdict


def published(desk: Desk, count: int = 3) -> list[Lease]:
    desk.submit(count=count)
    leases = desk.claim()
    for lease in leases:
        desk.end(lease, State.PUBLISHED)
    return leases


def test_no_question_shows_another_projects_work(desk: Desk) -> None:
    (lease,) = published(desk, 1)
    theirs = desk.insights
    for project in ("theirs", ""):
        assert (
            theirs.batches(project)
            == theirs.jobs(project)
            == theirs.gallery(project)
            == theirs.artifacts(project)
            == []
        )
        assert theirs.batch(project, lease.batch_id) is theirs.job(project, lease.job_id) is None
        assert theirs.jobs(project, batch_id=lease.batch_id) == theirs.bad_lines(project, lease.batch_id) == []
        assert sum(theirs.counts(project).values()) == 0
    assert len(desk.insights.artifacts("ours")) == 1


def test_a_relative_in_another_project_is_not_shown(desk: Desk) -> None:
    (lease,) = published(desk, 1)
    Access(desk.engine).create_project("theirs")
    other = desk.submit(count=1, project="theirs")
    desk.sql("UPDATE job SET parent_job_id = :id WHERE batch_id = :other", id=lease.job_id, other=other)
    job = desk.insights.job("ours", lease.job_id)
    assert job is not None
    assert job["children"] == []


def test_lists_are_paged_without_gap_or_double(desk: Desk) -> None:
    leases = published(desk, 5)
    ids = [lease.job_id for lease in leases]
    first = desk.insights.jobs("ours", limit=2)
    rest = desk.insights.jobs("ours", after=first[-1]["id"])
    assert [job["id"] for job in first + rest] == ids
    newest = desk.insights.gallery("ours", limit=2)
    older = desk.insights.gallery("ours", before=newest[-1]["id"])
    assert [one["job_id"] for one in newest + older] == ids[::-1]
    batches = [desk.submit(count=1) for _ in range(3)]
    page = desk.insights.batches("ours", limit=2)
    assert [batch["id"] for batch in page] == batches[:0:-1]
    assert desk.insights.batches("ours", before=page[-1]["id"])[0]["id"] == batches[0]


def test_a_listed_job_carries_its_file_and_its_verdict(desk: Desk) -> None:
    desk.submit(count=2)
    one, two = desk.claim()
    desk.end(one, State.PUBLISHED)
    desk.end(two, State.BLOCKED)
    done, blocked = desk.insights.jobs("ours")
    assert (done["verdict"], done["mime"], len(done["sha256"])) == ("allow", "image/png", 64)
    assert (blocked["verdict"], blocked["mime"], blocked["sha256"]) == ("block", None, None)
    assert [job["id"] for job in desk.insights.jobs("ours", state="blocked")] == [two.job_id]
    both = ["blocked", "published"]
    assert [job["id"] for job in desk.insights.jobs("ours", state=both)] == [one.job_id, two.job_id]
    assert [job["id"] for job in desk.insights.jobs("ours", state=both, limit=1)] == [one.job_id]
    assert [job["id"] for job in desk.insights.jobs("ours", state=both, after=one.job_id)] == [two.job_id]
    assert desk.insights.jobs("ours", state=[]) == []
    assert desk.insights.counts() == {str(state): int(state in ("published", "blocked")) for state in State}


@pytest.mark.parametrize("frame", [Outcome.ALLOW, Outcome.REVIEW, Outcome.BLOCK])
@pytest.mark.parametrize("stage", [Stage.PROMPT, Stage.INPUT])
def test_the_verdict_shown_is_the_one_that_decided(desk: Desk, frame: Outcome, stage: Stage) -> None:
    """A job held by its prompt says what was said of the prompt, though its frame was allowed."""
    desk.submit(count=2)
    lease, other = desk.claim()
    desk.queue.record([(other, verdict("p" * 64, Outcome.REVIEW, stage))])
    (doubt,) = desk.queue.record([(lease, verdict("p" * 64, Outcome.REVIEW, stage))])
    desk.publish(lease, frame)
    shown, waiting = desk.insights.jobs("ours")
    assert waiting["verdict"] is None
    assert shown["verdict"] == (Outcome.BLOCK if frame is Outcome.BLOCK else Outcome.REVIEW)
    alone = desk.insights.job("ours", lease.job_id)
    assert alone is not None
    assert alone["verdict"] == shown["verdict"]
    told = next(one for one in alone["verdicts"] if one["id"] == alone["verdict_id"])
    assert (told["id"] == doubt, told["stage"]) == ((False, "frame") if frame is Outcome.BLOCK else (True, str(stage)))


def test_only_published_artifacts_are_in_the_gallery(desk: Desk) -> None:
    desk.submit(count=2)
    one, two = desk.claim()
    desk.end(one, State.PUBLISHED)
    desk.end(two, State.HELD)
    assert [art["job_id"] for art in desk.insights.gallery("ours")] == [one.job_id]
    assert [art["job_id"] for art in desk.insights.artifacts("ours", "held")] == [two.job_id]


def test_the_whole_farm_is_counted_again_only_after_a_while(desk: Desk) -> None:
    desk.submit(count=2)
    assert desk.insights.farm_counts()["queued"] == 2
    desk.submit(count=1)
    assert desk.insights.farm_counts()["queued"] == 2
    desk.clock.now += COUNTED_FOR_S
    assert desk.insights.farm_counts()["queued"] == 3


def test_a_batch_is_settled_when_nothing_of_it_is_to_come(desk: Desk) -> None:
    batch = desk.submit(NewJob(line=1, spec=SPEC, name="a"), NewJob(line=2, spec=SPEC, parent_name="a"))

    def settled() -> bool:
        return bool(desk.insights.batches("ours")[0]["settled"])

    assert not settled()
    (lease,) = desk.claim()
    desk.end(lease, State.HELD)
    assert not settled(), "its child waits"
    desk.queue.cancel_batch(batch, "ann")
    assert settled()


def test_a_key_opens_its_project_until_it_is_revoked(desk: Desk) -> None:
    access = Access(desk.engine, desk.clock)
    key = access.create_key("ours", "laptop", "submitter")
    found = access.find_key(key)
    assert found is not None
    assert (found.project_id, found.role, found.name) == ("ours", "submitter", "laptop")
    assert access.find_key(key + "x") is access.find_key("") is None
    assert key not in str([dict(row) for table in ("api_key", "audit") for row in desk.rows(f"SELECT * FROM {table}")])
    access.create_project("theirs")
    with pytest.raises(NotFound):
        access.revoke_key("theirs", found.id, "bob")
    assert access.find_key(key) == found
    access.revoke_key("ours", found.id, "ann")
    assert access.find_key(key) is None
    assert access.keys("ours")[0].revoked_at == desk.clock.now


def test_a_key_needs_a_project_and_a_known_role(desk: Desk) -> None:
    with pytest.raises(NotFound, match="theirs"):
        Access(desk.engine).create_key("theirs", "laptop", "submitter")
    with pytest.raises(BadInput, match="did you mean 'operator'"):
        Access(desk.engine).create_key("ours", "laptop", "operater")


def test_an_upload_is_its_projects_alone(desk: Desk) -> None:
    access = Access(desk.engine)
    upload = access.add_upload("ours", "cat.png", "key", "image/png", 64, 64, 100)
    assert access.upload("theirs", upload) is None
    found = access.upload("ours", upload)
    assert found is not None
    assert found["name"] == "cat.png"
