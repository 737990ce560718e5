"""The queue's own cost: jobs/s from claim to publication with a renderer, gate and signer that cost nothing, the
latency of a claim however many jobs wait, and the time to accept a large batch. The settings are the shipped ones:
every commit is durable.

python -m benchmarks.queue --json [--database sqlite|postgresql|both] [--jobs N] [--waiting N] [--lines N] [--out FILE]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine, select, text

from actors import cards
from benchmarks import costless, postgres
from farm import db, intake
from farm.access import Access
from farm.dispatcher import Dispatcher
from farm.insights import Insights
from farm.job_queue import JobQueue
from farm.tables import JOB

GROUP, SMALL = 50, 4  # the second is what the farm does unless it is told otherwise
WORKERS = 2
LOOK_S = 0.02
PROMPT = "a red circle on a blue background"
RULES = intake.Rules("bench", {"tiny": cards.TINY}, "tiny")
FIGURES = ("jobs_per_s", "claim_p50_ms_1k", "claim_p99_ms_1k", "claim_p99_ms_1m", "accept_100k_s", "jobs_per_s_by_4")


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


@contextmanager
def database(kind: str) -> Iterator[Engine]:
    with tempfile.TemporaryDirectory() as folder:
        if kind == "postgresql":
            with postgres.server() as url:
                yield from _ready(url)
        else:
            yield from _ready(f"sqlite:///{folder}/farm.db")


def _ready(url: str) -> Iterator[Engine]:
    engine = db.connect(url)
    db.migrate(engine)
    Access(engine).create_project("bench")
    try:
        yield engine
    finally:
        engine.dispose()


def submit(queue: JobQueue, count: int, name: str) -> tuple[int, float]:
    """A batch of so many lines as a client sends them, and the seconds it took to accept it."""
    lines = ({"prompt": PROMPT, "seed": number, "id": f"{name}-{number}"} for number in range(1, count + 1))
    file = io.BytesIO(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    started = time.perf_counter()
    receipt = intake.take(file, intake.Submission(name, "bench"), RULES, queue)
    return receipt.batch_id, time.perf_counter() - started


def lane_of(queue: JobQueue, batch: int) -> int:
    return next(lane.id for lane in queue.lanes() if lane.batch_id == batch)


def throughput(engine: Engine, jobs: int, group: int) -> float:
    """Jobs a second from the first claim to the last publication, through the dispatcher with all its threads."""
    queue = JobQueue(engine)
    batch, _ = submit(queue, jobs, f"in-groups-of-{group}")
    dispatcher = Dispatcher(costless.ports(queue), group=group, workers=WORKERS)
    thread = threading.Thread(target=dispatcher.run)
    started = time.perf_counter()
    thread.start()
    while _unfinished(engine, batch):
        time.sleep(LOOK_S)
    seconds = time.perf_counter() - started
    dispatcher.stop()
    thread.join()
    if (counts := Insights(engine).conservation(batch)["counts"]) != {"published": jobs}:
        raise RuntimeError(f"of {jobs} jobs became {counts}")
    return jobs / seconds


def _unfinished(engine: Engine, batch: int) -> bool:
    left = select(JOB.c.id).where(JOB.c.batch_id == batch, JOB.c.state.in_(["queued", "leased"])).limit(1)
    with db.reading(engine) as connection:
        return connection.execute(left).first() is not None


def claim_latency(engine: Engine, waiting: int, samples: int = 1000) -> tuple[float, float]:
    """p50 and p99 in milliseconds of claims of one job while so many wait in the lane."""
    queue = JobQueue(engine)
    batch = _fill(engine, queue, waiting + samples)
    lane, taken = lane_of(queue, batch), []
    for _ in range(samples):
        started = time.perf_counter()
        leases = queue.claim(lane, "bench", 1, 3600.0)
        taken.append((time.perf_counter() - started) * 1000)
        if len(leases) != 1:
            raise RuntimeError("a claim came back empty")
    queue.pause(batch, "bench")
    return statistics.median(taken), statistics.quantiles(taken, n=100)[98]


def _fill(engine: Engine, queue: JobQueue, jobs: int) -> int:
    """One real job, copied inside the database until there are enough."""
    batch, _ = submit(queue, 1, f"waiting-{jobs}")
    with engine.begin() as connection:
        columns = ", ".join(f'"{column.name}"' for column in JOB.c if column.name not in ("id", "line", "name"))
        copy = f"INSERT INTO job (line, {columns}) SELECT n, {columns} FROM job, numbers WHERE batch_id = {batch}"
        connection.execute(
            text(f"WITH RECURSIVE numbers(n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM numbers WHERE n < {jobs}) {copy}")
        )
        connection.execute(text(f"UPDATE batch SET jobs = {jobs} WHERE id = {batch}"))
    return batch


def measure(kind: str, jobs: int, waiting: int, lines: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    with database(kind) as engine:
        say(f"{kind}: {jobs:,} jobs from claim to publication, {GROUP} at a time")
        figures["jobs_per_s"] = round(throughput(engine, jobs, GROUP), 1)
        say(f"{kind}: {figures['jobs_per_s']:,} jobs/s; {jobs // 10:,} jobs, {SMALL} at a time")
        figures["jobs_per_s_by_4"] = round(throughput(engine, jobs // 10, SMALL), 1)
        say(f"{kind}: {figures['jobs_per_s_by_4']:,} jobs/s; accepting {lines:,} lines")
        figures["accept_100k_s"] = round(submit(JobQueue(engine), lines, "accept")[1] * 100_000 / lines, 2)
        say(f"{kind}: {figures['accept_100k_s']} s for 100,000 lines; claims with 1,000 waiting")
        figures["claim_p50_ms_1k"], figures["claim_p99_ms_1k"] = (round(ms, 3) for ms in claim_latency(engine, 1000))
        say(f"{kind}: p50 {figures['claim_p50_ms_1k']} ms, p99 {figures['claim_p99_ms_1k']} ms; {waiting:,} waiting")
        figures["claim_p99_ms_1m"] = round(claim_latency(engine, waiting)[1], 3)
        say(f"{kind}: p99 {figures['claim_p99_ms_1m']} ms")
    return {name: figures[name] for name in FIGURES}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="farm bench queue", description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--database", choices=["sqlite", "postgresql", "both"], default="both")
    parser.add_argument("--jobs", type=int, default=20_000, help="jobs to publish")
    parser.add_argument("--waiting", type=int, default=1_000_000, help="how many wait in the large case")
    parser.add_argument("--lines", type=int, default=100_000, help="lines of the batch to accept")
    parser.add_argument("--out", type=Path, help="also write the figures, with the machine and the date, to this file")
    options = parser.parse_args(argv)
    kinds = ["sqlite", "postgresql"] if options.database == "both" else [options.database]
    figures = {}
    for kind in kinds:
        try:
            figures[kind] = measure(kind, options.jobs, options.waiting, options.lines)
        except postgres.NoServer as error:
            say(f"{kind}: left out, {error}")
    if options.out:
        options.out.write_text(json.dumps(machine() | {"figures": figures}, indent=2) + "\n")
    report: Callable[[], str] = (lambda: json.dumps(figures)) if options.json else (lambda: _table(figures))
    print(report())
    return 0 if len(figures) == len(kinds) else 1


def machine() -> dict[str, str | int]:
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"{os.cpu_count()} cores, {platform.machine()}",
        "python": platform.python_version(),
        "load": f"{os.getloadavg()[0]:.1f} processes wanted a core",
    }


def _table(figures: dict[str, dict[str, float]]) -> str:
    rows = [f"{name:<18}" + "".join(f"{figures[kind][name]:>14,}" for kind in figures) for name in FIGURES]
    return "\n".join([" " * 18 + "".join(f"{kind:>14}" for kind in figures), *rows])


if __name__ == "__main__":
    sys.exit(main())
