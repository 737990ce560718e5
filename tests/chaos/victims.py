"""The farm on trial: starting it, finding its processes, killing one, and stopping it without a trace."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Container
from pathlib import Path

import psutil

from farm.commands.starting import wait_ready
from farm.config import Settings

# How often each is chosen. Killing the head kills the gangs and the gate with it, so it is rarer.
WEIGHTS = {"dispatch": 4, "api": 4, "signer": 4, "rank": 4, "gate": 4, "ray": 1}
ACTORS = {"rank": "ray::Rank", "gate": "ray::Host"}
STOP_S = 90.0


class Trial:
    weights = WEIGHTS

    def __init__(self, home: Path, *, flat: bool) -> None:
        self.settings = Settings(home=home / "farm", port=free_port(), lease_s=5.0, retry_s=0.5, device="cpu")
        self.log = home / "up.log"
        with self.log.open("wb") as file:
            argv = [sys.executable, *self.module(flat)]
            self.process = subprocess.Popen(argv, env=self.environment(), stdout=file, stderr=file)
        self.seen: set[psutil.Process] = set()

    def module(self, flat: bool) -> list[str]:
        return ["-m", "tests.chaos.up"] if flat else ["-m", "farm.cli", "up"]

    def environment(self) -> dict[str, str]:
        mine = {"HOME": self.settings.home, "PORT": self.settings.port, "DEVICE": "cpu"}
        mine |= {"LEASE_S": self.settings.lease_s, "RETRY_S": self.settings.retry_s}
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("FARM_", "RAY_"))}
        return clean | {"OMP_NUM_THREADS": "1"} | {f"FARM_{name}": str(value) for name, value in mine.items()}

    def ready(self) -> None:
        wait_ready(self.settings, 120.0, self.process)

    def kill_one(self, rng: random.Random, killed: Container[str]) -> str | None:
        """kill -9 of one process of a kind drawn by lot, each once before any a second time; None where that kind is
        not alive just now."""
        drawn = {kind: weight for kind, weight in self.weights.items() if kind not in killed} or self.weights
        kind = rng.choices(list(drawn), list(drawn.values()))[0]
        victims = self.find(kind)
        if not victims:
            return None
        try:
            self.kill(kind, rng.choice(victims))
        except psutil.NoSuchProcess:
            return None
        return kind

    def kill(self, kind: str, victim: psutil.Process) -> None:
        victim.kill()

    def find(self, kind: str) -> list[psutil.Process]:
        family = self.family()
        if kind in ACTORS:
            return [each for each in family if title(each).startswith(ACTORS[kind])]
        note = self.settings.home / "run" / f"{kind}.pid"
        number = note.read_text().strip() if note.exists() else ""
        return [each for each in family if str(each.pid) == number]

    def family(self) -> list[psutil.Process]:
        try:
            family = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        self.seen |= set(family)
        return family

    def left_over(self) -> list[str]:
        """What lies about while the farm still runs and has nothing to do."""
        return []

    def stop(self) -> list[str]:
        """End it; returns what is left of it."""
        self.family()
        self.process.terminate()
        self.process.wait(STOP_S)
        _, left = psutil.wait_procs(list(self.seen), timeout=10)
        return [f"{each.pid} {title(each)}" for each in left]


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def until_alive(trial: Trial, kinds: set[str], seconds: float) -> None:
    end = time.monotonic() + seconds
    while missing := {kind for kind in kinds if not trial.find(kind)}:
        if time.monotonic() > end:
            raise TimeoutError(f"no {', '.join(sorted(missing))} in {seconds:.0f} s; see {trial.log}")
        time.sleep(0.2)
