"""A queue on each database, a clock that only moves when told, and short words for what the tests do with them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import Engine, text

from farm import events
from farm.access import Access
from farm.db import connect, reading
from farm.insights import Insights
from farm.job import Spec, State
from farm.job_queue import Finished, JobQueue, NewJob, Stored
from farm.ports import Lease, Outcome, Stage, Verdict

SPEC = Spec("tiny", "a red circle", 1, 64, 64, 4, 3.5)
START = 1_790_000_000.0


@dataclass
class Clock:
    now: float = START

    def __call__(self) -> float:
        return self.now


def sha(words: str) -> str:
    return hashlib.sha256(words.encode()).hexdigest()


def frame_of(lease: Lease) -> str:
    return sha(f"frame {lease.job_id}/{lease.attempt}")


def verdict(subject: str, outcome: Outcome = Outcome.ALLOW, stage: Stage = Stage.FRAME, reason: str = "") -> Verdict:
    return Verdict(stage, subject, outcome, sha("policy"), "encoder", reason=reason, embedding=b"\0\1\xff")


def stored(frame: str, **changes: Any) -> Stored:
    facts: dict[str, Any] = {"key": sha(f"file {frame}"), "frame_sha256": frame, "manifest_sha256": sha("manifest")}
    facts |= {"label": "urn:c2pa:1", "mime": "image/png", "width": 64, "height": 64, "bytes": 999, "verified_at": START}
    return Stored(**(facts | changes))


def finished(lease: Lease, verdict_id: int, outcome: Outcome = Outcome.ALLOW, **changes: Any) -> Finished:
    facts = {name: getattr(stored(frame_of(lease)), name) for name in Stored.__dataclass_fields__} | changes
    return Finished(lease=lease, verdict_id=verdict_id, outcome=outcome, **facts)


@dataclass
class Desk:
    engine: Engine
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.queue = JobQueue(self.engine, self.clock)
        self.insights = Insights(self.engine, self.clock)
        Access(self.engine, self.clock).create_project("ours")

    def submit(self, *jobs: NewJob, count: int = 0, project: str = "ours", content: str | None = None) -> int:
        batch = self.queue.open_batch(project, "a batch", "ann")
        many = [NewJob(line=line, spec=SPEC) for line in range(1, count + 1)]
        self.queue.stage(batch, [*jobs, *many])
        return self.queue.accept(batch, content)

    def claim(self, limit: int = 10, owner: str = "worker-1", lease_s: float = 30.0) -> list[Lease]:
        leases: list[Lease] = []
        for lane in self.queue.lanes():
            leases += self.queue.claim(lane.id, owner, limit - len(leases), lease_s) if len(leases) < limit else []
        return leases

    def judge(self, lease: Lease, outcome: Outcome = Outcome.ALLOW) -> int | None:
        return self.queue.record([(lease, verdict(frame_of(lease), outcome))], gang="gang-1", weights=sha("weights"))[0]

    def publish(self, lease: Lease, outcome: Outcome = Outcome.ALLOW) -> bool:
        verdict_id = self.judge(lease, outcome)
        return verdict_id is not None and self.queue.publish([finished(lease, verdict_id, outcome)])[0]

    def end(self, lease: Lease, state: State) -> None:
        """Bring a leased job to this state."""
        if state is State.BLOCKED:
            self.judge(lease, Outcome.BLOCK)
        elif state in (State.PUBLISHED, State.HELD):
            self.publish(lease, Outcome.ALLOW if state is State.PUBLISHED else Outcome.REVIEW)
        elif state is State.CANCELLED:
            self.queue.cancel_job(lease.job_id, "ann")
        assert self.state(lease.job_id) == state

    def states(self, batch: int) -> dict[str, int]:
        found = self.insights.conservation(batch)
        assert found["holds"], found
        counts: dict[str, int] = found["counts"]
        return counts

    def job(self, job_id: int) -> dict[str, Any]:
        return dict(self.rows("SELECT * FROM job WHERE id = :id", id=job_id)[0])

    def state(self, job_id: int) -> str:
        return str(self.job(job_id)["state"])

    def kinds(self, job_id: int | None = None) -> list[str]:
        events.seal(self.engine)
        happened = events.read(self.engine, limit=10_000)
        return [one["kind"] for one in happened if job_id is None or one["job_id"] == job_id]

    def rows(self, statement: str, **values: Any) -> Sequence[Any]:
        with reading(self.engine) as connection:
            return connection.execute(text(statement), values).mappings().all()

    def sql(self, statement: str, **values: Any) -> int:
        """What somebody with a database client might do."""
        with self.engine.begin() as connection:
            return connection.execute(text(statement), values).rowcount


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = connect(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def desk(engine: Engine) -> Desk:
    return Desk(engine)


@pytest.fixture
def another(database_url: str) -> Iterator[Callable[[], Engine]]:
    """More engines on the same database, as other processes would have."""
    engines: list[Engine] = []

    def make() -> Engine:
        engines.append(connect(database_url))
        return engines[-1]

    yield make
    for engine in engines:
        engine.dispose()
