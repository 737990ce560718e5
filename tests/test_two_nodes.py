"""The README's way from one node to two, followed line by line on one machine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from ray.util import get_node_ip_address

from tests.chaos.victims import free_port, title
from tests.reference import README

READY_S, BATCH_S, STOP_S = 180.0, 240.0, 90.0
SEEN = re.compile(r"A second node.*?```\n(.*?)```", re.S)
LINES = [
    {"prompt": "a red circle on a blue background", "width": 128, "height": 128, "seed": 1},
    {"prompt": "a yellow square on a green background", "width": 128, "height": 96, "seed": 2, "format": "webp"},
]
FARM_TOML = f"""
[[pools]]
model = "tiny"
sequence = 2
cpus = {os.cpu_count()}
"""


def the_five_lines(address: str) -> list[str]:
    found = SEEN.search(README.read_text())
    assert found, "README.md has lost its five lines"
    lines = [line.partition("#")[0].strip().replace("HOST:6379", address) for line in found[1].splitlines()]
    assert len(lines) == 5
    return [line.replace("--port=6379", f"--port={address.rpartition(':')[2]}") for line in lines]


class Machine:
    """Runs lines as a shell in `folder` would; what goes on running is stopped at the end, the last one first."""

    def __init__(self, folder: Path, exported: str) -> None:
        self.folder, self.exported = folder, exported
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("FARM_", "RAY_"))}
        scripts = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = clean | {
            "PATH": scripts,
            "HOME": str(folder),
            "RAY_TMPDIR": str(folder),
            "OMP_NUM_THREADS": "1",
        }
        self.running: list[psutil.Popen] = []

    def run(self, line: str, **more: str) -> str:
        done = subprocess.run(
            ["sh", "-c", f"{self.exported} && {line}"],
            cwd=self.folder,
            env=self.environment | more,
            capture_output=True,
            text=True,
            check=False,
            timeout=BATCH_S,
        )
        assert done.returncode == 0, f"{line}: {done.stderr}"
        return done.stdout

    def start(self, line: str, **more: str) -> Path:
        path = self.folder / f"{len(self.running)}.log"
        with path.open("wb") as log:
            shell = ["sh", "-c", f"{self.exported} && exec {line}"]
            environment = self.environment | more
            self.running.append(psutil.Popen(shell, cwd=self.folder, env=environment, stdout=log, stderr=log))
        return path

    def until_said(self, words: str, log: Path) -> None:
        end = time.monotonic() + READY_S
        while words not in log.read_text():
            assert time.monotonic() < end, f"{log.name} does not say {words!r}"
            time.sleep(0.3)

    def stop(self) -> list[str]:
        """With Ctrl-C, in the reverse order. Returns what is left."""
        family = {child for one in self.running if one.is_running() for child in one.children(recursive=True)}
        for one in reversed(self.running):
            one.send_signal(signal.SIGINT)
            one.wait(STOP_S)
        _, left = psutil.wait_procs(family, timeout=30)
        return [title(one) for one in left]


@contextmanager
def machine(exported: str) -> Iterator[Machine]:
    with tempfile.TemporaryDirectory(prefix="two-", dir="/tmp") as folder:  # Ray's sockets want a short path
        one = Machine(Path(folder), exported)
        try:
            yield one
        finally:
            left = one.stop()
            for log in sorted(one.folder.glob("*.log")):
                print(f"--- {log.name}\n{log.read_text()[-3000:]}")
        assert left == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_nodes_in_five_lines_draw_and_publish_together() -> None:
    exported, token, head, node, up = the_five_lines(f"{get_node_ip_address()}:{free_port()}")
    farm = {"FARM_PORT": str(free_port()), "FARM_DEVICE": "cpu"}
    with machine(exported) as here:
        (here.folder / "farm.toml").write_text(FARM_TOML)
        (here.folder / "batch.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in LINES))
        here.run(token)
        assert (here.folder / ".ray" / "auth_token").stat().st_mode & 0o077 == 0
        for line in (head, node):
            here.until_said("Ray runtime started", here.start(line))
        here.until_said("farm: ready", here.start(up, **farm))

        pools = json.loads(here.run("farm pool plan --json", **farm))["pools"]
        assert [len(set(where)) for row in pools if row["pool"] == "tiny" for where in row["where"]] == [2]
        here.run("farm submit batch.jsonl --watch", **farm)

        raylets = {rank.ppid() for rank in found(here, "ray::Rank")}
        assert len(raylets) == 2
        rows = [json.loads(line) for line in here.run("farm verify --published --json", **farm).splitlines()]
        assert [row["verdict"] for row in rows] == ["Trusted"] * len(LINES)


def found(here: Machine, words: str) -> list[psutil.Process]:
    return [one for top in here.running for one in top.children(recursive=True) if words in title(one)]
