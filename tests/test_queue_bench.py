"""What `farm bench queue` times is the farm's real way: lines taken in, the dispatcher, each job published."""

from __future__ import annotations

from benchmarks.queue import database, submit, throughput
from farm.insights import Insights
from farm.job_queue import JobQueue


def test_the_bench_publishes_what_it_counts() -> None:
    with database("sqlite") as engine:
        assert throughput(engine, 9, 4) > 0
        batch, seconds = submit(JobQueue(engine), 3, "more")
        assert seconds > 0
        assert Insights(engine).conservation(batch)["counts"] == {"queued": 3}
