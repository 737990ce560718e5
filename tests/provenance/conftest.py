"""A farm's home with a real database and store, and the real signer process on it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import Engine
from sqlmodel import Session, SQLModel

from farm.config import Settings
from farm.db import connect, migrate
from farm.errors import Fault
from farm.job import Spec, State
from farm.ports import Frame, Lease, Outcome, Signed, Stage
from farm.store import FsspecStore, open_store
from farm.tables import Artifact, Batch, Decision, Job, Lane, Project, Upload, Verdict
from provenance import keys
from provenance.client import SignerClient

NOW = 1_790_000_000.0
OWNER = "dispatcher-1"
DRAWN_WITH = {"device": "cpu", "precision": "auto", "tensor": 2, "sequence": 1, "torch": "2.11"}


def picture(seed: int, width: int = 48, height: int = 32) -> Frame:
    return Frame(width, height, random.Random(seed).randbytes(width * height * 3))


Row = TypeVar("Row", bound=SQLModel)
Values = dict[str, Any]
OURS: Values = {"project_id": "p", "created_at": NOW}


@dataclass
class Farm:
    settings: Settings
    engine: Engine
    store: FsspecStore
    signer: SignerClient
    counter: Iterator[int] = field(default_factory=lambda: iter(range(1, 1 << 30)))

    @property
    def trust(self) -> str:
        return keys.trust(self.settings.home)

    def add(self, row: Row) -> Row:
        with Session(self.engine, expire_on_commit=False) as session:
            session.add(row)
            session.commit()
        return row

    def change(self, row: Any, **values: Any) -> None:
        with Session(self.engine) as session:
            stored = session.get(type(row), row.id)
            for name, value in values.items():
                setattr(stored, name, value)
            session.add(stored)
            session.commit()

    def job(self, **values: Any) -> Job:
        """A job leased to OWNER in its first attempt."""
        leased: Values = {"state": State.LEASED, "attempt": 1, "owner": OWNER, "lease_expires_at": NOW + 60}
        asked: Values = {"model": "tiny", "prompt": "a red circle", "seed": 7, "steps": 4, "guidance": 3.5}
        size: Values = {"width": 48, "height": 32, "format": "png"}
        place: Values = {"batch_id": 1, "lane_id": 1, "line": next(self.counter), "updated_at": NOW}
        return self.add(Job(**(OURS | place | leased | asked | size | values)))

    def judge(
        self,
        job: Job,
        frame: Frame,
        outcome: Outcome = Outcome.ALLOW,
        attempt: int = 1,
        stage: Stage = Stage.FRAME,
        policy: str = "aa" * 32,
    ) -> Verdict:
        said: Values = {"stage": stage, "subject": frame.sha256, "outcome": outcome, "attempt": attempt}
        by: Values = {"policy": policy, "encoder": "bb" * 32, "weights": "cc" * 32, "gang": "gang-1"}
        by |= {"drawn_with": json.dumps(DRAWN_WITH)}
        return self.add(Verdict(job_id=job.id or 0, **OURS, **said, **by))

    def sign(self, job: Job, frame: Frame, **changed: Any) -> Signed:
        return self.signer.sign(lease(job, **changed), frame)

    def settle(self, job: Job, verdict: Verdict, signed: Signed, state: State = State.PUBLISHED) -> Artifact:
        """What the second transaction does, straight into the tables."""
        what: Values = {"key": self.store.put(signed.data), "bytes": len(signed.data), "mime": signed.mime}
        size: Values = {"width": job.width, "height": job.height, "frame_sha256": verdict.subject}
        proof: Values = {"manifest_sha256": signed.manifest_sha256, "label": signed.label, "verified_at": NOW}
        artifact = self.add(Artifact(job_id=job.id or 0, verdict_id=verdict.id or 0, **OURS, **what, **size, **proof))
        self.change(job, state=state, verdict_id=verdict.id, artifact_id=artifact.id, owner=None, lease_expires_at=None)
        return artifact

    def make(self, frame: Frame, state: State = State.PUBLISHED, **values: Any) -> tuple[Job, Artifact, Signed]:
        """One job from its lease to its end."""
        job = self.job(**values)
        verdict = self.judge(job, frame, Outcome.REVIEW if state is State.HELD else Outcome.ALLOW)
        signed = self.sign(job, frame)
        return job, self.settle(job, verdict, signed, state), signed

    def upload(self, data: bytes, mime: str = "image/png") -> Upload:
        key = self.store.put(data)
        row: Values = {"name": "mine", "key": key, "mime": mime, "bytes": len(data), "width": 48, "height": 32}
        return self.add(Upload(id=f"u{next(self.counter)}", **OURS, **row))

    def decide(self, job: Job, artifact: Artifact, outcome: str = "approve") -> Decision:
        row: Values = {"job_id": job.id, "artifact_id": artifact.id, "outcome": outcome}
        return self.add(Decision(person="Kim", reason="it is a circle", **OURS, **row))


def lease(job: Job, **changed: Any) -> Lease:
    spec = Spec(job.model, job.prompt, job.seed, job.width, job.height, job.steps, job.guidance, job.format)
    named: Values = {"job_id": job.id, "attempt": job.attempt, "owner": OWNER, "spec": spec}
    named |= {"project_id": "p", "batch_id": 1}
    return Lease(**(named | changed))


def open_farm(home: Path, client: SignerClient) -> Farm:
    settings = Settings(home=home)
    engine = connect(settings.database_url)
    migrate(engine)
    farm = Farm(settings, engine, open_store(settings.store_url), client)
    farm.add(Project(id="p", created_at=NOW))
    farm.add(Batch(name="b", state="open", updated_at=NOW, **OURS))
    lane: Values = {"model": "tiny", "shape_key": "tiny/48x32/4/text", "priority": 0, "open": True}
    farm.add(Lane(batch_id=1, **OURS, **lane))
    return farm


def start_signer(home: Path, socket: str = "") -> tuple[subprocess.Popen[bytes], SignerClient]:
    none = home / "none.toml"
    none.touch()
    environment = os.environ | {"FARM_HOME": str(home), "FARM_CONFIG": str(none), "OMP_NUM_THREADS": "1"}
    environment |= {"FARM_SIGNER": socket} if socket else {}
    log = (home / "signer.log").open("ab")
    with log:
        process = subprocess.Popen([sys.executable, "-m", "provenance.signer"], env=environment, stderr=log)
    client = SignerClient(Settings(home=home, signer=socket).signer_socket)
    for _ in range(1200):  # a minute
        try:
            client.health()
        except Fault:
            time.sleep(0.05)
        else:
            return process, client
    process.kill()
    raise AssertionError((home / "signer.log").read_text())


def run_farm(home: Path, algorithm: str) -> Iterator[Farm]:
    keys.init(home, algorithm)
    process, client = start_signer(home)
    farm = open_farm(home, client)
    yield farm
    process.terminate()
    process.wait(10)
    farm.engine.dispose()


@pytest.fixture(scope="session")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    yield from run_farm(tmp_path_factory.mktemp("es256"), "es256")


@pytest.fixture(scope="session")
def farm_ed25519(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    yield from run_farm(tmp_path_factory.mktemp("ed25519"), "ed25519")


@pytest.fixture(scope="session")
def signed_files(farm: Farm) -> dict[str, bytes]:
    """One small signed file of each format."""
    return {kind: farm.make(picture(5), format=kind)[2].data for kind in ("png", "jpeg", "webp")}


Refusal = Callable[..., Fault]


@pytest.fixture(scope="session")
def refused() -> Refusal:
    def call(work: Callable[..., Any], *args: Any, **kwargs: Any) -> Fault:
        with pytest.raises(Fault) as caught:
            work(*args, **kwargs)
        return caught.value

    return call
