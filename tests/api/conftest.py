"""A farm without a dispatcher: the API over SQLite and a folder, two projects, a key for each role."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image

from farm.access import Access
from farm.api import create_app
from farm.api.callers import Farm
from farm.checking import Checker
from farm.cli import main
from farm.config import Settings
from farm.db import connect, migrate
from farm.insights import Insights
from farm.job import State
from farm.job_queue import Finished, JobQueue
from farm.ports import Outcome, Stage, Verdict
from farm.store import open_store
from provenance.desk import VerifyingDesk
from provenance.limited import LimitedVerifier
from tests.cards import CATALOGUE


@dataclass
class World:
    client: TestClient
    farm: Farm
    keys: dict[str, str] = field(default_factory=dict)  # "ours/submitter" and so on

    def ask(self, method: str, path: str, who: str = "ours/submitter", **options: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.keys[who]}"} | options.pop("headers", {})
        return self.client.request(method, path, headers=headers, **options)

    def get(self, path: str, who: str = "ours/submitter", **options: Any) -> Any:
        return self.ask("GET", path, who, **options)

    def post(self, path: str, who: str = "ours/submitter", **options: Any) -> Any:
        return self.ask("POST", path, who, **options)

    def submit(self, *lines: dict[str, Any], who: str = "ours/submitter", **params: Any) -> Any:
        return self.post("/api/batches", who, content=jsonl(*lines), params=params)

    def finish(self, outcome: Outcome, data: bytes = b"signed", **told: Any) -> int:
        """Carry the next job to its end as the dispatcher would; returns its id."""
        queue = self.farm.queue
        lane = queue.lanes()[0]
        (lease,) = queue.claim(lane.id, "test", 1, 30.0)
        verdict = Verdict(Stage.FRAME, "f" * 64, outcome, "p" * 64, "e" * 64, margin=0.25, reason="why", **told)
        (verdict_id,) = queue.record([(lease, verdict)], gang="g", weights="w")
        if outcome is Outcome.BLOCK:
            return lease.job_id
        assert verdict_id is not None
        stored = Finished(
            lease=lease,
            verdict_id=verdict_id,
            outcome=outcome,
            key=self.farm.store.put(data),
            frame_sha256="f" * 64,
            manifest_sha256="m" * 64,
            label="urn:test",
            mime="image/png",
            width=128,
            height=128,
            bytes=len(data),
            verified_at=1.0,
        )
        queue.publish([stored])
        return lease.job_id

    def state(self, job_id: int) -> State:
        return State(self.get(f"/api/jobs/{job_id}").json()["state"])


def salt_of(job_id: int, project_id: str) -> str:
    """As the signer would answer."""
    return f"{project_id} {job_id}".encode().hex()


def jsonl(*lines: dict[str, Any]) -> bytes:
    return b"".join(json.dumps({"prompt": "a red circle"} | line).encode() + b"\n" for line in lines)


def picture(width: int = 8, height: int = 8, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="session")
def examiner() -> Iterator[LimitedVerifier]:
    with LimitedVerifier("") as examiner:
        yield examiner


@pytest.fixture
def world(tmp_path: Path, examiner: LimitedVerifier) -> Iterator[World]:
    url = f"sqlite:///{tmp_path}/farm.db"
    engine = connect(url)
    migrate(engine)
    engine.dispose()
    with world_on(url, tmp_path, examiner) as world:
        yield world


@contextmanager
def world_on(url: str, home: Path, examiner: LimitedVerifier | None = None) -> Iterator[World]:
    """The same small world on any migrated database."""
    engine = connect(url)
    access = Access(engine)
    settings = Settings(home=home, max_upload_mb=1, max_pixels_in=10_000)
    store = open_store(f"file://{home}/store")
    desk = VerifyingDesk(home)
    checker = Checker(desk.told, engine, max_bytes=settings.max_upload_mb << 20, public=False)
    core = (settings, JobQueue(engine), access, Insights(engine), store, CATALOGUE)
    farm = Farm(*core, "tiny", examiner, checker=checker, prompt_salt=salt_of)
    with TestClient(create_app(farm)) as client:
        world = World(client, farm)
        for project in ("ours", "theirs"):
            access.create_project(project)
            for role in ("submitter", "reviewer", "operator"):
                world.keys[f"{project}/{role}"] = access.create_key(project, role, role)
        yield world
    desk.close()
    engine.dispose()


@pytest.fixture
def address(world: World) -> Iterator[str]:
    """The same farm behind a real socket."""
    server = uvicorn.Server(
        uvicorn.Config(world.client.app, port=0, log_level="error", timeout_graceful_shutdown=1, ws="none")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


class Shell:
    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.out, self.err = "", ""

    def __call__(self, *arguments: object) -> int:
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        self.out, self.err = self.capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code

    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)
