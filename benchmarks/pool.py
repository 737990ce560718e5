"""What the farm around the gangs costs: images/s through the queue, the gate, the signer and the store over N gangs,
beside N bare loops that only render; once with ranks whose steps wait a set time without using the CPU, as a GPU's
would, once with the tiny model. And how long a killed rank keeps its job from running again.

python -m benchmarks.pool --json [--gangs N] [--step-ms MS] [--jobs N] [--out FILE]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.messages import Order, Post
from actors.rank import job_of
from actors.shard import Shard, factory
from benchmarks.queue import machine
from farm.config import PoolSpec, Settings
from farm.job import Spec
from farm.job_queue import NewJob
from farm.ports import GangState, GangStatus, RenderRequest

if TYPE_CHECKING:
    from actors.flux.render import Pixels, RenderJob
    from actors.gang import Gang
    from actors.pool import Pool
    from farm.dispatcher import Dispatcher

STEPS, SIDE = 8, 128
PACED, TINY = "benchmarks.pool:load_paced", "actors.shard:load_shard"
STEP_S = "BENCH_STEP_S"  # ranks inherit it
READY_S, DONE_S = 180.0, 900.0


class Paced:
    """Waits as long as a GPU would compute, and gives noise."""

    def __init__(self, step_s: float) -> None:
        self.step_s = step_s

    def render(self, jobs: Sequence[RenderJob], *rest: Any, **more: Any) -> list[Pixels]:
        for _ in range(jobs[0].steps):
            time.sleep(self.step_s * len(jobs))
        rngs = (np.random.default_rng(job.seed) for job in jobs)
        return [rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for rng in rngs]


def load_paced(_: Post) -> Shard:
    return Shard(Paced(float(os.environ[STEP_S])), "0" * 64)


def spec(seed: int) -> Spec:
    return Spec("tiny", f"a red circle on a blue background, number {seed}", seed, SIDE, SIDE, STEPS, 3.5)


# Bare loops


def bare(post: Post, gangs: int, jobs: int, group: int) -> float:
    """Images/s of so many processes that render their share and do nothing else."""
    spawned = multiprocessing.get_context("spawn")
    start, end = spawned.Barrier(gangs + 1), spawned.Barrier(gangs + 1)
    crew = [spawned.Process(target=_loop, args=(post, jobs // gangs, group, start, end)) for _ in range(gangs)]
    for process in crew:
        process.start()
    start.wait(READY_S)
    began = time.monotonic()
    end.wait(DONE_S)
    seconds = time.monotonic() - began
    for process in crew:
        process.join()
    return (jobs // gangs * gangs) / seconds


def _loop(post: Post, jobs: int, group: int, start: Any, end: Any) -> None:
    import torch

    torch.set_num_threads(1)
    renderer = factory(post.shard)(post).renderer
    work = [job_of(RenderRequest(seed, 1, spec(seed))) for seed in range(jobs)]
    renderer.render(work[:group])
    start.wait(READY_S)
    for at in range(0, jobs, group):
        renderer.render(work[at : at + group])
    end.wait(DONE_S)


# The whole farm


@dataclass(slots=True)
class Running:
    dispatcher: Dispatcher
    pool: Pool

    def submit(self, jobs: int, name: str) -> int:
        queue = self.dispatcher.queue
        batch = queue.open_batch("default", name, "bench")
        queue.stage(batch, (NewJob(line=line, spec=spec(line)) for line in range(1, jobs + 1)))
        queue.accept(batch, hashlib.sha256(name.encode()).hexdigest())
        return batch

    @property
    def gangs(self) -> list[GangStatus]:
        return [row for row in self.pool.status() if row.model == "tiny"]

    def drain(self, batch: int, said: str) -> None:
        from farm.insights import Insights

        insights, end, last = Insights(self.dispatcher.queue.engine), time.monotonic() + DONE_S, -1
        while left := unsettled(insights.batch("default", batch)):
            if left != last:
                progress(f"{said}: {left} jobs left")
                last = left
            if time.monotonic() > end:
                raise RuntimeError(f"{left} jobs had not ended after {DONE_S:.0f} s")
            time.sleep(0.02)


def unsettled(batch: dict[str, Any] | None) -> int:
    counts: dict[str, int] = batch["counts"] if batch else {}
    return sum(counts.get(state, 0) for state in ("waiting", "queued", "leased"))


@contextmanager
def farm(home: Path, shard: str, gangs: int, group: int, workers: int) -> Iterator[Running]:
    """Signer and Ray as processes of their own, the dispatcher's loop in a thread of this one."""
    from actors.models import catalogue
    from actors.pool import Pool
    from farm.access import Access
    from farm.cli import build_dispatcher

    pool = PoolSpec(model="tiny", min=gangs, max=gangs, cpus=0.5)
    settings = Settings(home=home, device="cpu", pools=(pool,), group=group, workers=workers)
    environment = os.environ | {"FARM_HOME": str(home), "OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen([sys.executable, "-m", "farm.cli", name], env=environment, stderr=subprocess.DEVNULL)
        for name in ("signer", "ray")
    ]
    try:
        dispatcher, close = build_dispatcher(settings)
        close()
        renderer = Pool(settings, catalogue(), shard=shard)
        dispatcher.ports = replace(dispatcher.ports, renderer=renderer)
        Access(dispatcher.queue.engine).create_project("default")
        renderer.start()
        loop = threading.Thread(target=dispatcher.run)
        loop.start()
        try:
            until(lambda: sum(row.state is GangState.READY for row in renderer.status()) == gangs, "the gangs")
            yield Running(dispatcher, renderer)
        finally:
            dispatcher.stop()
            loop.join()
            renderer.close(remove=True)
    finally:
        for child in reversed(children):
            child.terminate()
            child.wait(60)


def until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + READY_S
    while not true():
        if time.monotonic() > end:
            raise RuntimeError(f"{what}: not within {READY_S:.0f} s")
        time.sleep(0.01)


def through(one: Running, jobs: int, said: str) -> float:
    """Images/s from the moment the batch is there until its last job has ended; everything is warm before."""
    one.drain(one.submit(2 * one.dispatcher.group * len(one.gangs), f"{said}, warming"), f"{said}, warming")
    began = time.monotonic()
    one.drain(one.submit(jobs, said), said)
    return jobs / (time.monotonic() - began)


@dataclass(slots=True)
class Traffic:
    """What crosses between the dispatcher and actors. Sizes are of the pickles that Ray makes of it."""

    calls: int = 0
    bytes: int = 0


@contextmanager
def counted() -> Iterator[Traffic]:
    from ray.actor import ActorMethod

    from actors.gang import Gang

    traffic, remote, render = Traffic(), ActorMethod._remote, Gang.render

    def counting(self: Any, *args: Any, **options: Any) -> Any:
        traffic.calls += 1
        return remote(self, *args, **options)

    def weighed(self: Gang, order: Order, *rest: Any, **more: Any) -> Any:
        answers = render(self, order, *rest, **more)
        traffic.bytes += len(self.ranks) * len(pickle.dumps(order)) + len(pickle.dumps(answers))
        return answers

    ActorMethod._remote, Gang.render = counting, weighed  # type: ignore[method-assign]
    try:
        yield traffic
    finally:
        ActorMethod._remote, Gang.render = remote, render  # type: ignore[method-assign]


def recovery(one: Running) -> float:
    """Seconds from a rank's end to a job in a gang of another name in its place."""
    batch = one.submit(4 * one.dispatcher.group * len(one.gangs), "recovery")
    until(lambda: all(row.state is GangState.BUSY for row in one.gangs), "busy gangs")
    place = one.gangs[0]
    gang = next(each.gang for each in one.pool.places["tiny"] if each.gang and each.gang.id == place.gang)
    os.kill(gang.hello().pid, signal.SIGKILL)
    began = time.monotonic()

    def again() -> bool:
        now = one.gangs[0]
        return now.gang not in ("", place.gang) and now.state is GangState.BUSY

    until(again, "another gang at work")
    seconds = time.monotonic() - began
    one.drain(batch, "recovery")
    return seconds


def measure(gangs: int, jobs: int, tiny_jobs: int, group: int, workers: int) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name, shard, count in (("paced", PACED, jobs), ("tiny", TINY, tiny_jobs)):
        post = post_of(shard)
        progress(f"{name}: {gangs} bare loops")
        alone = bare(post, gangs, count, group)
        with tempfile.TemporaryDirectory() as folder, farm(Path(folder), shard, gangs, group, workers) as one:
            with counted() as traffic:
                whole = through(one, count, name)
            if name == "paced":
                total = count + 2 * group * gangs
                figures |= {"crossings_per_job": traffic.calls / total, "bytes_per_job": traffic.bytes / total}
                figures["recovery_s"] = recovery(one)
        figures[name] = {"images_per_s": whole, "bare_images_per_s": alone, "ratio_to_bare": whole / alone}
    return {"ratio_to_bare": figures["paced"]["ratio_to_bare"]} | figures


def post_of(shard: str) -> Post:
    from actors.models import card_of
    from actors.places import post_of

    return post_of(PoolSpec(model="tiny"), card_of("tiny"), Settings(device="cpu"), shard)


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return round(value, 3) if isinstance(value, float) else value


def progress(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="farm bench pool", description=__doc__)
    parser.add_argument("--gangs", type=int, default=2)
    parser.add_argument("--step-ms", type=float, default=100.0, help="of one picture")
    parser.add_argument("--jobs", type=int, default=96, help="with ranks that wait")
    parser.add_argument("--tiny-jobs", type=int, default=96, help="with the tiny model")
    parser.add_argument("--group", type=int, default=4, help="jobs that are drawn together")
    parser.add_argument("--workers", type=int, default=0, help="groups in flight; 0: as the farm sets it")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--out", type=Path, help="also write it to this file, with device and date")
    given = parser.parse_args(arguments)
    os.environ[STEP_S] = str(given.step_ms / 1000)
    figures = rounded(measure(given.gangs, given.jobs, given.tiny_jobs, given.group, given.workers))
    settings = {
        "gangs": given.gangs,
        "step_ms": given.step_ms,
        "group": given.group,
        "workers": given.workers,
        "steps": STEPS,
    }
    document = figures | settings | machine()
    if given.out:
        given.out.write_text(json.dumps(document, indent=2) + "\n")
    if given.json:
        print(json.dumps(document))
    else:
        for name, value in document.items():
            print(f"{name:<20} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
