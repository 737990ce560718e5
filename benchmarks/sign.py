"""How fast the signer signs: images/s through its process beside a plain loop of the same encode, sign and read-back,
in turns within one run; for one and two workers, each a process of its own. And how many a verifier reads.

python -m benchmarks.sign --json [--side N] [--seconds S] [--rounds N] [--out FILE]
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from sqlmodel import Session

from benchmarks.queue import machine
from farm.config import Settings
from farm.db import connect, migrate
from farm.errors import Fault
from farm.job import FORMATS, Spec, State
from farm.ports import Frame, Lease, Outcome, Signed, Stage
from farm.tables import Batch, Job, Lane, Project, Verdict
from provenance import keys, labels, manifest, records
from provenance.client import SignerClient
from provenance.keyring import Keyring
from provenance.verify import verify_bytes

OWNER = "bench"
READY_S = 60.0
Values = dict[str, Any]


def picture(side: int) -> Frame:
    """Between a photograph and noise: what compresses neither well nor badly."""
    coarse = Image.frombytes("RGB", (side // 8, side // 8), random.Random(7).randbytes((side // 8) ** 2 * 3))
    return Frame(side, side, coarse.resize((side, side), Image.Resampling.BICUBIC).tobytes())


def lay_out(settings: Settings, frame: Frame) -> dict[str, int]:
    """A farm with one leased job of each format, whose frame was allowed; returns their ids."""
    engine = connect(settings.database_url)
    migrate(engine)
    now = time.time()
    ours: Values = {"project_id": "p", "created_at": now}
    with Session(engine) as session:
        for row in (
            Project(id="p", created_at=now),
            Batch(name="bench", state="open", updated_at=now, **ours),
            Lane(batch_id=1, model="tiny", shape_key="tiny", priority=0, open=True, **ours),
        ):
            session.add(row)
            session.flush()  # one after the other: each refers to the one before
        jobs = {kind: _leased(session, kind, line, frame, ours) for line, kind in enumerate(FORMATS, 1)}
    engine.dispose()
    return jobs


def _leased(session: Session, kind: str, line: int, frame: Frame, ours: dict[str, Any]) -> int:
    spec: Values = {"model": "tiny", "prompt": "a red circle", "seed": 7, "steps": 4, "guidance": 3.5, "format": kind}
    lease: Values = {"state": State.LEASED, "attempt": 1, "owner": OWNER, "lease_expires_at": time.time() + 86400}
    size: Values = {"width": frame.width, "height": frame.height}
    job = Job(batch_id=1, lane_id=1, line=line, updated_at=time.time(), **ours, **spec, **lease, **size)
    session.add(job)
    session.flush()
    said: Values = {"stage": Stage.FRAME, "subject": frame.sha256, "outcome": Outcome.ALLOW, "attempt": 1}
    by: Values = {"policy": "aa" * 32, "encoder": "bb" * 32, "weights": "cc" * 32, "gang": "bench"}
    session.add(Verdict(job_id=job.id or 0, **ours, **said, **by))
    session.commit()
    return job.id or 0


@contextmanager
def signer(settings: Settings) -> Iterator[None]:
    keys.init(settings.home)
    environment = os.environ | {"FARM_HOME": str(settings.home)}
    with (settings.home / "signer.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "provenance.signer"], env=environment, stderr=log)
    try:
        _wait_for(SignerClient(settings.signer_socket))
        yield
    finally:
        process.terminate()
        process.wait()


def _wait_for(client: SignerClient) -> None:
    until = time.monotonic() + READY_S
    while True:
        try:
            client.health()
        except Fault:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
        else:
            return


# What one worker does again and again


def bare(settings: Settings, job_id: int, frame: Frame) -> Callable[[], object]:
    signing = Keyring(settings).signing
    claim = records.frame_claim(connect(settings.database_url, read_only=True), job_id, 1, OWNER, frame)
    job, salt = claim.job, signing.keys.prompt_salt(job_id)

    def once() -> object:
        made = manifest.made(job, claim.verdict, manifest.GENERATED, salt, dt.datetime.now(dt.UTC), edits=False)
        data = labels.encode(frame, job.format, manifest.GENERATED)
        return signing.sign(made, data, FORMATS[job.format])

    return once


def through_signer(settings: Settings, job_id: int, frame: Frame) -> Callable[[], Signed]:
    lease = Lease(job_id, 1, OWNER, "p", 1, Spec("tiny", "a red circle", 7, frame.width, frame.height, 4, 3.5))
    return partial(SignerClient(settings.signer_socket).sign, lease, frame)


def verifying(settings: Settings, job_id: int, frame: Frame) -> Callable[[], object]:
    signed, trust = through_signer(settings, job_id, frame)(), keys.trust(settings.home)
    return partial(verify_bytes, signed.data, signed.mime, trust)


WORK: dict[str, Callable[[Settings, int, Frame], Callable[[], object]]] = {
    "bare": bare,
    "signer": through_signer,
    "verify": verifying,
}


def rate(kind: str, workers: int, seconds: float, settings: Settings, job_id: int, frame: Frame) -> float:
    """How many so many workers get through in a second."""
    spawned = multiprocessing.get_context("spawn")
    start, counts = spawned.Barrier(workers), spawned.Queue()
    given = (kind, seconds, settings, job_id, frame, start, counts)
    crew = [spawned.Process(target=_repeat, args=given) for _ in range(workers)]
    for process in crew:
        process.start()
    found = [counts.get(timeout=READY_S + seconds) for _ in crew]
    for process in crew:
        process.join()
    return float(sum(found))


def _repeat(kind: str, seconds: float, settings: Settings, job_id: int, frame: Frame, start: Any, counts: Any) -> None:
    once, done = WORK[kind](settings, job_id, frame), 0
    once()
    start.wait(READY_S)
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        once()
        done += 1
    counts.put(done / (time.monotonic() - began))


def measure(
    side: int, seconds: float, rounds: int, formats: Sequence[str] = tuple(FORMATS), crews: Sequence[int] = (1, 2)
) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        settings, frame = Settings(home=Path(folder)), picture(side)
        jobs = lay_out(settings, frame)
        with signer(settings):
            for kind in formats:
                figures[kind] = {}
                for workers in crews:
                    found = [
                        {name: rate(name, workers, seconds, settings, jobs[kind], frame) for name in WORK}
                        for _ in range(rounds)
                    ]
                    figures[kind][f"workers_{workers}"] = _mean(found)
                    print(f"{kind} {workers}: {figures[kind][f'workers_{workers}']}", file=sys.stderr, flush=True)
    return figures


def _mean(found: list[dict[str, float]]) -> dict[str, float]:
    mean = {name: sum(one[name] for one in found) / len(found) for name in WORK}
    said = {"sign_per_s": mean["signer"], "verify_per_s": mean["verify"], "bare_per_s": mean["bare"]}
    return {name: round(value, 1) for name, value in said.items()} | {
        "ratio_to_bare": round(mean["signer"] / mean["bare"], 3)
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="farm bench sign", description=__doc__)
    parser.add_argument("--side", type=int, default=1024, help="pixels")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=2, help="of signer and plain loop, in turns")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--out", type=Path, help="also write it to this file, with device and date")
    given = parser.parse_args(arguments)
    if given.side < 16 or given.seconds <= 0 or given.rounds < 1:
        parser.error("--side is 16 or more, --seconds and --rounds are above 0")
    document = measure(given.side, given.seconds, given.rounds) | {"side": given.side} | machine()
    if given.out:
        given.out.write_text(json.dumps(document, indent=2) + "\n")
    if given.json:
        print(json.dumps(document))
    else:
        for name, value in document.items():
            print(f"{name:<8} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
