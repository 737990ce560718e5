"""The farm's processes apart: against one PostgreSQL database and a Ray cluster that is not the farm's own. README,
"Grow it", gives the same commands and settings."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from farm.client import FarmClient
from farm.db import connect
from farm.errors import Unavailable
from tests.chaos.audit import audit
from tests.chaos.victims import free_port
from tests.conftest import fresh_postgres

READY_S, BATCH_S = 180.0, 240.0  # importing torch on a cold and busy machine takes minutes
RAY = ("start", "--head", "--block", "--num-cpus=2", f"--object-store-memory={256 << 20}", "--include-dashboard=false")


@dataclass
class Apart:
    """Each process is a child of the test, told everything by its environment."""

    folder: Path
    database: str
    port: int = field(default_factory=free_port)
    ray_port: int = field(default_factory=free_port)
    running: dict[str, list[psutil.Process]] = field(default_factory=dict)
    accepted: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.folder / "token").write_text(secrets.token_hex(32))
        (self.folder / "token").chmod(0o600)
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("FARM_", "RAY_"))}
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.folder / "token")}
        self.ray_environment = clean | token | {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
        self.environment = self.ray_environment | {
            "RAY_ADDRESS": f"127.0.0.1:{self.ray_port}",
            "FARM_HOME": str(self.folder / "home"),
            "FARM_DATABASE": self.database,
            "FARM_PORT": str(self.port),
            "FARM_DEVICE": "cpu",
            "FARM_LEASE_S": "5",
            "FARM_RETRY_S": "1",
        }

    def start(self, *names: str) -> None:
        for name in names:
            if name == "ray":
                temp = f"--temp-dir={self.folder / 'r'}"
                argv = [sys.executable, "-m", "ray.scripts.scripts", *RAY, f"--port={self.ray_port}", temp]
                environment = self.ray_environment
            else:
                argv, environment = [sys.executable, "-m", "farm.cli", name], self.environment
            with (self.folder / f"{name}.log").open("ab") as log:
                process = psutil.Popen(argv, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            self.running[name] = [process]

    def kill(self, *names: str) -> None:
        """kill -9, and of Ray the whole family, as when its machine goes down."""
        for name in names:
            (process,) = self.running.pop(name)
            family = [process, *(process.children(recursive=True) if process.is_running() else [])]
            for one in family:
                try:
                    one.kill()
                except psutil.NoSuchProcess:
                    continue
            psutil.wait_procs(family, timeout=20)

    def farm(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "farm.cli", *arguments]
        done = subprocess.run(
            command, env=self.environment, check=False, capture_output=True, text=True, timeout=BATCH_S
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def client(self) -> FarmClient:
        return FarmClient(f"http://127.0.0.1:{self.port}", self.environment.get("FARM_KEY", ""))

    def missing(self) -> str:
        try:
            with self.client() as client:
                client.ready()
        except Unavailable as error:
            return ", ".join(error.more.get("missing", ["the API"]))
        return ""

    def submit(self, seed: int, steps: int = 8) -> int:
        """A picture of each format, an edit, an edit of that, and a prompt that the rules block."""
        lines: list[dict[str, Any]] = [
            {"id": f"a{seed}", "prompt": "a blue circle on a yellow background", "format": "png"},
            {"prompt": "a yellow square on a green background", "format": "jpeg"},
            {"prompt": "a white circle on a green background", "format": "webp", "n": 4},
            {"id": f"b{seed}", "prompt": "make the circle green", "image": f"line:a{seed}"},
            {"prompt": "make the background white", "image": f"line:b{seed}"},
            {"prompt": "a forbidden circle on a white background"},
        ]
        sized = [line | {"seed": seed, "steps": steps, "width": 128, "height": 128} for line in lines]
        with self.client() as client:
            answer = client.submit([json.dumps(line).encode() + b"\n" for line in sized])
        self.accepted[int(answer["id"])] = int(answer["jobs"])
        return int(answer["id"])

    def batch(self, batch_id: int) -> dict[str, Any]:
        with self.client() as client:
            return client.batch(batch_id)


@pytest.fixture
def apart(postgres_server: str) -> Iterator[Apart]:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="apart-", dir="/tmp") as folder:  # Ray's sockets want a short path
        farm = Apart(Path(folder), fresh_postgres(postgres_server))
        try:
            yield farm
        finally:
            for name in list(farm.running):
                farm.kill(name)
            for log in sorted(farm.folder.glob("*.log")):
                print(f"--- {log.name}\n{log.read_text()[-3000:]}")


def until(true: Callable[[], bool], seconds: float, what: Callable[[], object]) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, what()
        time.sleep(0.2)


def settled(farm: Apart, batch: int) -> None:
    until(lambda: bool(farm.batch(batch)["settled"]), BATCH_S, lambda: (farm.batch(batch), farm.missing()))
    assert {state: count for state, count in farm.batch(batch)["counts"].items() if count} == {
        "published": 8,
        "blocked": 1,
    }


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.timeout(1200)
def test_the_processes_apart_publish_and_survive_each_other(apart: Apart) -> None:
    apart.start("ray", "api", "signer", "dispatch")
    apart.environment["FARM_KEY"] = apart.farm("access", "add", "tester", "--role", "operator").strip()
    until(lambda: apart.missing() == "", READY_S, apart.missing)
    settled(apart, apart.submit(seed=1))

    second = apart.submit(seed=2, steps=50)
    until(lambda: apart.batch(second)["counts"].get("leased", 0) > 0, BATCH_S, lambda: apart.batch(second))
    apart.kill("dispatch", "signer")
    until(lambda: "dispatcher: none is running" in apart.missing(), 60.0, apart.missing)
    apart.start("dispatch", "signer")
    settled(apart, second)

    third = apart.submit(seed=3, steps=50)
    until(lambda: apart.batch(third)["counts"].get("leased", 0) > 0, BATCH_S, lambda: apart.batch(third))
    apart.kill("ray")
    until(lambda: "ray_gone" in apart.missing(), 60.0, apart.missing)
    assert apart.running["dispatch"][0].is_running()
    apart.start("ray")
    settled(apart, third)

    engine = connect(apart.database, read_only=True)
    assert audit(engine, apart.accepted) == []
    engine.dispose()
    rows = [json.loads(line) for line in apart.farm("verify", "--published", "--json").splitlines()]
    assert [row["verdict"] for row in rows] == ["Trusted"] * 24
