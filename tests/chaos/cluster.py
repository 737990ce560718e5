"""The farm on a Ray cluster of four nodes on this machine: ranks, raylets, whole nodes and the head are killed."""

from __future__ import annotations

import json
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.chaos.node import token
from tests.chaos.run import STARTED_S, Report, batches, play, submit, unsettled
from tests.chaos.victims import Trial, free_port, until_alive

NODES = 3  # beside the head, of one CPU each: a gang of one rank and one over two nodes
POOLS = [{"model": "tiny", "name": "one", "min": 1}, {"model": "tiny", "name": "two", "min": 1, "sequence": 2}]
WEIGHTS = {"rank": 4, "raylet": 3, "node": 3, "head": 2, "gate": 1, "dispatch": 2}
WHOLE = ("node", "head")
PATIENCE_S = (3.0, 60.0)  # for work to get through before the next kill: the shorter one hits the mending itself
LEFT_S = 90.0


class ClusterTrial(Trial):
    weights = WEIGHTS

    def __init__(self, home: Path) -> None:
        self.folder, self.ray_port = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp")), free_port()
        token(self.folder).touch(0o600)
        token(self.folder).write_text(secrets.token_hex(32))
        super().__init__(home, flat=True)

    def module(self, flat: bool) -> list[str]:
        return ["-m", "tests.chaos.up", str(self.folder), str(self.ray_port), str(NODES)]

    def environment(self) -> dict[str, str]:
        ours = {"FARM_RAY_ADDRESS": f"127.0.0.1:{self.ray_port}", "FARM_POOLS": json.dumps(POOLS)}
        ray = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token(self.folder))}
        return super().environment() | ours | ray

    def find(self, kind: str) -> list[psutil.Process]:
        if kind == "raylet":
            return [each for node in self.find("node") for each in node.children() if each.name() == "raylet"]
        noted = super().find
        if kind == "node":
            return [each for number in range(NODES) for each in noted(f"node{number + 1}")]
        return noted(kind)

    def kill(self, kind: str, victim: psutil.Process) -> None:
        """Of a node everything at once, as when its machine goes down."""
        family = victim.children(recursive=True) if kind in WHOLE else []
        for each in (victim, *family):
            try:
                each.kill()
            except psutil.NoSuchProcess:
                continue

    def left_over(self) -> list[str]:
        """Once the farm has had time to clear up."""
        end = time.monotonic() + LEFT_S
        while found := self.lying_about():
            if time.monotonic() > end:
                return found
            time.sleep(1.0)
        return []

    def lying_about(self) -> list[str]:
        command = [sys.executable, "-m", "tests.chaos.leftovers"]
        asked = subprocess.run(
            command, env=self.environment(), check=False, capture_output=True, text=True, timeout=120
        )
        if asked.returncode:
            return [f"the cluster does not say what lies about: {asked.stderr[-500:]}"]
        found = json.loads(asked.stdout)
        ranks = len(self.find("rank"))
        more = [f"{ranks} processes of ranks, {found['ranks']} in use"] if ranks != found["ranks"] else []
        return [*found["wrong"], *more]

    def stop(self) -> list[str]:
        try:
            return super().stop()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


def run_cluster(home: Path, jobs: int, kills: int, seed: int, *, say: Callable[[str], None]) -> Report:
    rng, work = random.Random(seed), batches(seed)

    def storm(trial: Trial, report: Report) -> None:
        while sum(report.accepted.values()) < jobs:
            submit(trial, work, report)
        until_alive(trial, {"rank", "gate"}, STARTED_S)
        accepted = sum(report.accepted.values())
        for number in range(kills):
            wait_for(trial, accepted * (kills - number) // (kills + 1), rng.choice(PATIENCE_S))
            killed = None
            while killed is None and (left := unsettled(trial)):
                killed = trial.kill_one(rng, report.kills)
            if killed is None:
                return
            report.kills[killed] += 1
            say(f"kill {number + 1}/{kills}: {killed}; {left} jobs under way")

    return play(ClusterTrial(home), storm, say)


def wait_for(trial: Trial, jobs: int, seconds: float) -> None:
    """Until no more than so many are under way."""
    end = time.monotonic() + seconds
    while unsettled(trial) > jobs and time.monotonic() < end:
        time.sleep(0.2)
