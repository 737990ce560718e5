"""Submit, kill, wait until all is settled, audit."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from farm.commands.session import open_client
from farm.db import connect
from farm.errors import Unavailable
from farm.insights import Insights
from tests.chaos.audit import audit, under_way
from tests.chaos.victims import Trial, until_alive

COLOURS, SHAPES = ("red", "green", "blue", "yellow"), ("circle", "square")
LINES = 12
SHORTEST_S, LONGEST_S = 0.1, 2.5  # between two kills
LET_WORK = 0.6  # this share of the kills comes after work has got through since the last one
WORK_S = 20.0
BACKLOG = 3 * LINES  # so many jobs always wait, so that every kill hits work
SETTLE_S = 300.0
STARTED_S = 180.0


@dataclass
class Report:
    kills: Counter[str] = field(default_factory=Counter)
    accepted: dict[int, int] = field(default_factory=dict)
    states: dict[str, int] = field(default_factory=dict)
    superseded: int = 0
    verified: int = 0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        jobs = {state: count for state, count in self.states.items() if count}
        document: dict[str, Any] = {"jobs": jobs, "batches": len(self.accepted), "kills": dict(self.kills)}
        names = ("superseded", "verified", "seconds", "wrong")
        return document | {name: getattr(self, name) for name in names}


def run(home: Path, kills: int, seed: int, *, flat: bool, say: Callable[[str], None]) -> Report:
    rng, work = random.Random(seed), batches(seed)

    def endless(trial: Trial, report: Report) -> None:
        submit(trial, work, report)
        until_alive(trial, {"rank", "gate"}, STARTED_S)
        storm(trial, kills, rng, work, report, say)

    return play(Trial(home, flat=flat), endless, say)


def play(trial: Trial, storm: Callable[[Trial, Report], None], say: Callable[[str], None]) -> Report:
    report, began = Report(), time.monotonic()
    try:
        trial.ready()
        storm(trial, report)
        settle(trial, report, say)
        report.wrong += trial.left_over()
    finally:
        left = trial.stop()
    report.wrong += [f"still alive after the end: {process}" for process in left]
    engine = connect(trial.settings.database_url, read_only=True)
    report.wrong += audit(engine, report.accepted)
    report.states, report.superseded = Insights(engine).counts(), Insights(engine).superseded()
    engine.dispose()
    verify(trial, report)
    report.seconds = round(time.monotonic() - began, 1)
    return report


def storm(
    trial: Trial,
    kills: int,
    rng: random.Random,
    work: Iterator[list[bytes]],
    report: Report,
    say: Callable[[str], None],
) -> None:
    while report.kills.total() < kills:
        while unsettled(trial) < BACKLOG:
            submit(trial, work, report)
        if rng.random() < LET_WORK:
            wait_for_work(trial)
        time.sleep(rng.uniform(SHORTEST_S, LONGEST_S))
        killed = trial.kill_one(rng, report.kills)
        if killed is not None:
            report.kills[killed] += 1
            say(f"kill {report.kills.total()}/{kills}: {killed}; {unsettled(trial)} jobs under way")


def wait_for_work(trial: Trial) -> None:
    """Until something has ended: a farm that only ever starts is no target."""
    before, end = unsettled(trial), time.monotonic() + WORK_S
    while unsettled(trial) >= before and time.monotonic() < end:
        time.sleep(0.1)


def submit(trial: Trial, work: Iterator[list[bytes]], report: Report) -> None:
    """Until it is accepted: the same lines again are the same batch, even if the answer was lost."""
    lines, end = next(work), time.monotonic() + STARTED_S
    while True:
        try:
            with open_client(trial.settings) as client:
                answer = client.submit(lines)
            report.accepted[int(answer["id"])] = int(answer["jobs"])
            return
        except Unavailable:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def batches(seed: int) -> Iterator[list[bytes]]:
    """Pictures, edits of them, and now and then a prompt that the rules block."""
    number = seed * 1_000_000
    while True:
        lines: list[dict[str, Any]] = []
        for index in range(LINES):
            number += 1
            prompt = f"a {COLOURS[number % 4]} {SHAPES[number % 2]} on a white background"
            line: dict[str, Any] = {"id": f"n{number}", "prompt": prompt, "seed": number, "steps": 4}
            if index == LINES - 1:
                line["prompt"] = "a forbidden circle on a white background"
            elif index % 4 == 3:
                line |= {"prompt": "make the circle blue", "image": f"line:n{number - 1}"}
            lines.append(line)
        yield [json.dumps(line).encode() + b"\n" for line in lines]


def settle(trial: Trial, report: Report, say: Callable[[str], None]) -> None:
    end, last = time.monotonic() + SETTLE_S, -1
    while (left := unsettled(trial)) and time.monotonic() < end:
        if left != last:
            say(f"{left} jobs under way")
            last = left
        time.sleep(1.0)
    if left:
        report.wrong.append(f"{left} jobs had not ended {SETTLE_S:.0f} s after the last kill")


def unsettled(trial: Trial) -> int:
    """From the database, because the API may be dead just now."""
    engine = connect(trial.settings.database_url, read_only=True)
    try:
        return len(under_way(engine))
    finally:
        engine.dispose()


def verify(trial: Trial, report: Report) -> None:
    command = [sys.executable, "-m", "farm.cli", "verify", "--published", "--json"]
    ended = subprocess.run(command, env=trial.environment(), check=False, capture_output=True, text=True, timeout=600)
    rows = [json.loads(line) for line in ended.stdout.splitlines()]
    report.verified = sum(row["verdict"] == "Trusted" for row in rows)
    report.wrong += [
        f"{row['path']}: {row['verdict']}, {row['sentence']}" for row in rows if row["verdict"] != "Trusted"
    ]
    if report.verified != report.states["published"]:
        report.wrong.append(
            f"{report.states['published']} published, {report.verified} verified: {ended.stderr[-500:]}"
        )
