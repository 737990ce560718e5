"""Law 3, by machine: whatever the queue is asked to do, in whatever order, with whatever the clock does meanwhile, what
was accepted is the sum over the states, nothing is published twice, and nothing moves but as the table says."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from farm.db import connect, migrate
from farm.errors import Conflict, Fault
from farm.job import Cause, State, may_move
from farm.job_queue import NewJob
from farm.ports import Lease, Outcome
from tests.queue.conftest import SPEC, Clock, Desk, finished, frame_of, stored

CAUSES = list(Cause)
OUTCOMES = [Outcome.ALLOW, Outcome.ALLOW, Outcome.REVIEW, Outcome.BLOCK]
FIRST = (State.WAITING, State.QUEUED, State.LEASED, State.CANCELLED)  # what may become of a job just accepted
JUMPS = [1.0, 5.0, 11.0, 1e7, -3.0, -1e7]


class Walk:
    """Each step takes one number and makes of it what it needs. Leases are kept after they were lost, so that late
    answers come all the time."""

    def __init__(self, desk: Desk) -> None:
        self.desk, self.accepted = desk, 0
        self.batches: list[int] = []
        self.leases: list[Lease] = []
        for number in (3, 4):
            self.submit(number)

    def lease(self, number: int) -> Lease | None:
        """One that still holds, if any; but every fourth time any of the latest, lost or not."""
        held = {(row["id"], row["attempt"]) for row in self.desk.rows("SELECT * FROM job WHERE state = 'leased'")}
        holding = [lease for lease in self.leases if (lease.job_id, lease.attempt) in held]
        choice = self.leases[-6:] if number % 4 == 0 or not holding else holding
        return choice[number % len(choice)] if choice else None

    def submit(self, number: int) -> None:
        size, chained = 1 + number % 4, number % 2
        names = [f"l{n}" for n in range(size)]
        parents = [names[n - 1] if chained and n else None for n in range(size)]
        jobs = [NewJob(line=n, spec=SPEC, name=names[n], parent_name=parents[n]) for n in range(size)]
        self.accepted += size
        self.batches.append(self.desk.submit(*jobs))

    def submit_edits(self, number: int) -> None:
        """A chain of edits that begins at a job of any state, which may end while the chain comes in."""
        jobs = self.desk.rows("SELECT id FROM job WHERE batch_id IN (SELECT id FROM batch WHERE state = 'open')")
        parent = jobs[number % len(jobs)]["id"]
        batch = self.desk.queue.open_batch("ours", "edits", "ann")
        first = NewJob(line=0, spec=SPEC, name="l0", parent_job_id=parent)
        rest = [NewJob(line=n, spec=SPEC, name=f"l{n}", parent_name=f"l{n - 1}") for n in (1, 2)]
        self.desk.queue.stage(batch, [first, *rest])
        if number % 3 == 0:
            self.desk.queue.cancel_job(parent, "ann")
        self.accepted += 3
        self.batches.append(self.desk.queue.accept(batch, None))

    def stage_and_die(self, number: int) -> None:
        batch = self.desk.queue.open_batch("ours", "never accepted", "ann")
        self.desk.queue.stage(batch, [NewJob(line=n, spec=SPEC) for n in range(1 + number % 3)])

    def claim(self, number: int) -> None:
        self.leases += self.desk.claim(1 + number % 3, f"worker-{number % 2}", lease_s=10.0)

    def judge(self, number: int) -> None:
        if lease := self.lease(number):
            self.desk.judge(lease, OUTCOMES[number % 4])

    def publish(self, number: int) -> None:
        if lease := self.lease(number):
            verdicts = self.desk.rows("SELECT id FROM verdict WHERE subject = :frame", frame=frame_of(lease))
            if verdicts:
                self.desk.queue.publish([finished(lease, verdicts[0]["id"], OUTCOMES[number % 3])])

    def fault(self, number: int) -> None:
        if lease := self.lease(number):
            self.desk.queue.fault(
                lease, Fault(CAUSES[number % len(CAUSES)], "broke"), gang=f"g{number % 3}", retry_s=1.0
            )

    def fault_for_good(self, number: int) -> None:
        """Until the job has failed or is out of reach."""
        for _ in range(3):
            self.claim(number)
            if lease := self.lease(1):
                self.desk.queue.fault(lease, Fault(Cause.RENDER_ERROR, "broke"), retry_s=0.0)

    def heartbeat(self, number: int) -> None:
        if lease := self.lease(number):
            self.desk.queue.heartbeat(lease.owner, [(lease.job_id, lease.attempt)], 10.0)

    def jump(self, number: int) -> None:
        self.desk.clock.now += JUMPS[number % len(JUMPS)]
        self.desk.queue.expire()

    def answer_late(self, number: int) -> None:
        """Judged in time, but published only after somebody else has the job."""
        self.claim(number)
        if lease := self.lease(1):
            self.desk.judge(lease)
            self.jump(2)
            self.claim(number + 1)
            verdicts = self.desk.rows("SELECT id FROM verdict WHERE subject = :frame", frame=frame_of(lease))
            if verdicts:
                self.desk.queue.publish([finished(lease, verdicts[0]["id"])])

    def cancel_job(self, number: int) -> None:
        if lease := self.lease(number):
            self.desk.queue.cancel_job(lease.job_id, "ann")

    def cancel_batch(self, number: int) -> None:
        if len(self.batches) > 1:
            with suppress(Conflict):  # it has ended
                self.desk.queue.cancel_batch(self.batches.pop(number % len(self.batches)), "ann")

    def pause_and_resume(self, number: int) -> None:
        batch = self.batches[number % len(self.batches)]
        try:
            self.desk.queue.pause(batch, "ann")
        except Conflict:  # it has ended
            return
        assert not any(lane.batch_id == batch for lane in self.desk.queue.lanes())
        self.desk.queue.resume(batch, "ann")

    def retry(self, number: int) -> None:
        self.desk.queue.retry(batch_id=self.batches[number % len(self.batches)], by="ann")

    def decide(self, number: int, outcomes: tuple[str, ...] = ("approve", "reject", "withdraw")) -> None:
        held = self.desk.rows(
            "SELECT id, artifact_id FROM job WHERE state IN ('held', 'approved', 'rejected') ORDER BY id"
        )
        if not held:
            return
        job, outcome = held[number % len(held)], outcomes[number % len(outcomes)]
        try:
            decision = self.desk.queue.decide(job["id"], job["artifact_id"], outcome, "ann", "")
        except Conflict:
            return
        if outcome == "approve" and number % 4:
            seen = self.desk.rows("SELECT frame_sha256 FROM artifact WHERE id = :id", id=job["artifact_id"])[0]
            assert self.desk.queue.publish_approved(job["id"], decision, stored(seen["frame_sha256"], key="again"))

    def hold_and_decide(self, number: int) -> None:
        self.claim(number)
        if lease := self.lease(1):
            self.desk.publish(lease, Outcome.REVIEW)
            self.decide(number, ("approve", "reject"))

    def withdraw(self, number: int) -> None:
        """What is published already goes back to a person; it may be approved and published again."""
        shown = self.desk.rows("SELECT id, artifact_id FROM job WHERE state = 'published' ORDER BY id")
        if shown:
            job = shown[number % len(shown)]
            self.desk.queue.decide(job["id"], job["artifact_id"], "withdraw", "ann", "")

    def collect(self, number: int) -> None:
        self.desk.queue.collect_abandoned(older_than_s=0.0)

    def check(self) -> None:
        assert sum(self.desk.insights.counts().values()) == self.accepted
        assert all(self.desk.insights.conservation(one["id"])["holds"] for one in self.desk.insights.batches("ours"))
        self.check_moves()
        self.check_reach()
        self.check_fence()

    def check_moves(self) -> None:
        """Each job's events are legal moves, end where it is, and publish it once, or again after it was withdrawn."""
        states = {row["id"]: State(row["state"]) for row in self.desk.rows("SELECT id, state FROM job")}
        last: dict[int, State] = {}
        published: Counter[int] = Counter()
        for row in self.desk.rows("SELECT job_id, kind FROM event WHERE job_id IS NOT NULL ORDER BY id"):
            if row["kind"] != "superseded":
                new, old = State(row["kind"]), last.get(row["job_id"])
                assert may_move(old, new) if old else new in FIRST
                last[row["job_id"]] = new
                published[row["job_id"]] += {State.PUBLISHED: 1, State.HELD: -published[row["job_id"]]}.get(new, 0)
        assert all(states[job] == state for job, state in last.items())
        assert max(published.values(), default=0) <= 1

    def check_reach(self) -> None:
        """A queued job lies in an open lane, a leased one has an end and a published parent if any, a waiting one has a
        parent that has not ended."""
        lost = """SELECT j.id FROM job j JOIN lane l ON l.id = j.lane_id LEFT JOIN job p ON p.id = j.parent_job_id
            JOIN batch b ON b.id = j.batch_id AND b.state = 'open'
            WHERE (j.state = 'queued' AND NOT l.open) OR (j.state = 'leased' AND j.lease_expires_at IS NULL)
            OR (j.state = 'leased' AND p.state <> 'published')
            OR (j.state = 'waiting' AND (p.id IS NULL
                OR p.state NOT IN ('waiting', 'queued', 'leased', 'held', 'approved')))"""
        assert self.desk.rows(lost) == []

    def check_fence(self) -> None:
        """What a job shows was made by its own last attempt, not by one that had lost its lease."""
        stale = """SELECT j.id FROM job j JOIN artifact a ON a.id = j.artifact_id JOIN verdict v ON v.id = a.verdict_id
            WHERE v.attempt <> j.attempt"""
        assert self.desk.rows(stale) == []


Step = Callable[[Walk, int], None]
WORK: list[Step] = [Walk.claim, Walk.judge, Walk.publish, Walk.decide, Walk.hold_and_decide, Walk.submit]
TROUBLE: list[Step] = [
    Walk.fault,
    Walk.fault_for_good,
    Walk.heartbeat,
    Walk.jump,
    Walk.answer_late,
    Walk.cancel_job,
    Walk.cancel_batch,
]
PEOPLE: list[Step] = [
    Walk.submit,
    Walk.submit_edits,
    Walk.withdraw,
    Walk.stage_and_die,
    Walk.pause_and_resume,
    Walk.retry,
    Walk.collect,
]
STEPS = st.lists(
    st.tuples(st.sampled_from([*WORK, *WORK, *WORK, *TROUBLE, *PEOPLE]), st.integers(0, 100)), min_size=40, max_size=60
)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "farm.db"
    engine = connect(f"sqlite:///{path}")
    migrate(engine)
    engine.dispose()
    return path


def test_nothing_accepted_is_lost_and_nothing_is_published_twice(template: Path) -> None:
    seen: Counter[str] = Counter()

    @given(STEPS)
    @settings(max_examples=30, derandomize=True, suppress_health_check=list(HealthCheck))
    def walk_and_check(steps: list[tuple[Step, int]]) -> None:
        with TemporaryDirectory() as folder:
            shutil.copy(template, folder)
            engine = connect(f"sqlite:///{folder}/farm.db")
            try:
                walk = Walk(Desk(engine, Clock()))
                for count, (step, number) in enumerate(steps):
                    step(walk, number)
                    if count % 5 == 0:
                        walk.check()
                walk.check()
                seen.update(row["kind"] for row in walk.desk.rows("SELECT kind FROM event"))
            finally:
                engine.dispose()

    walk_and_check()
    everywhere = {str(state) for state in State} - {"unlisted"} | {"superseded"}
    assert everywhere - seen.keys() == set(), "walks that do not go everywhere prove less than they say"
