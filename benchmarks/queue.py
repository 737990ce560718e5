"""The queue's own cost: jobs/s from claim to publication with a renderer, gate and signer that cost nothing, the
latency of a claim however many jobs wait, and the time to accept a large batch. The settings are the shipped ones:
every commit is durable.

python -m benchmarks.queue --json [--database sqlite|postgresql|both] [--jobs N] [--waiting N] [--lines N] [--out FILE]
"""

from __future__ import annotations

import argparse
import hashlib
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

from sqlalchemy import Engine, text

from benchmarks import postgres
from farm import db, events
from farm.access import Access
from farm.job import Spec
from farm.job_queue import Finished, JobQueue, NewJob
from farm.ports import Lease, Outcome, Stage, Verdict
from farm.tables import JOB

GROUP = 50
SPEC = Spec("tiny", "a red circle on a blue background", 1, 64, 64, 4, 3.5)
FIGURES = ("jobs_per_s", "claim_p50_ms_1k", "claim_p99_ms_1k", "claim_p99_ms_1m", "accept_100k_s")


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
    """A batch of so many lines, and the seconds it took to accept it."""
    started = time.perf_counter()
    batch = queue.open_batch("bench", name, "bench")
    queue.stage(batch, (NewJob(line=line, spec=SPEC, name=f"line-{line}") for line in range(1, count + 1)))
    queue.accept(batch, hashlib.sha256(name.encode()).hexdigest())
    return batch, time.perf_counter() - started


def lane_of(queue: JobQueue, batch: int) -> int:
    return next(lane.id for lane in queue.lanes() if lane.batch_id == batch)


def run_group(queue: JobQueue, leases: Sequence[Lease]) -> int:
    """The path of a group, with nothing between its transactions: prompts judged, frames judged, published."""
    frames = [hashlib.sha256(f"{lease.job_id}/{lease.attempt}".encode()).hexdigest() for lease in leases]
    prompt = hashlib.sha256(SPEC.prompt.encode()).hexdigest()
    queue.record([(lease, Verdict(Stage.PROMPT, prompt, Outcome.ALLOW, "policy", "")) for lease in leases])
    ids = queue.record(
        [(lease, verdict_on(frame)) for lease, frame in zip(leases, frames, strict=True)],
        gang="gang-1",
        weights="0" * 64,
    )
    return sum(queue.publish([finished(*each) for each in zip(leases, ids, frames, strict=True) if each[1]]))


def verdict_on(frame: str) -> Verdict:
    return Verdict(
        Stage.FRAME, frame, Outcome.ALLOW, "policy", "encoder", "violence", 0.4, 0.01, "whole", "", b"\0" * 1024
    )


def finished(lease: Lease, verdict_id: int | None, frame: str) -> Finished:
    assert verdict_id is not None
    return Finished(
        lease=lease,
        verdict_id=verdict_id,
        outcome=Outcome.ALLOW,
        key=frame,
        frame_sha256=frame,
        manifest_sha256=frame,
        label="urn:c2pa:bench",
        mime="image/png",
        width=64,
        height=64,
        bytes=1000,
        verified_at=time.time(),
    )


def throughput(engine: Engine, jobs: int) -> float:
    """One dispatcher in groups of 50, beside a thread that seals the events as the dispatcher's own does."""
    queue = JobQueue(engine)
    batch, _ = submit(queue, jobs, "throughput")
    lane, done, stop = lane_of(queue, batch), 0, threading.Event()
    sealer = threading.Thread(target=_seal_until, args=(engine, stop))
    sealer.start()
    started = time.perf_counter()
    while leases := queue.claim(lane, "bench", GROUP, 30.0):
        done += run_group(queue, leases)
    seconds = time.perf_counter() - started
    stop.set()
    sealer.join()
    if done != jobs:
        raise RuntimeError(f"{done} of {jobs} jobs were published")
    return jobs / seconds


def _seal_until(engine: Engine, stop: threading.Event) -> None:
    while not stop.wait(0.5):
        events.seal(engine)


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
        figures["jobs_per_s"] = round(throughput(engine, jobs), 1)
        say(f"{kind}: {figures['jobs_per_s']:,} jobs/s; accepting {lines:,} lines")
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
