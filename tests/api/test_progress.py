"""How far running jobs are, over HTTP and on the terminal; and their previews, for their own project alone."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import httpx
import pytest

from farm import events
from farm.api import live
from farm.commands import session
from farm.ports import Lease, Outcome, Signed, Stage, Step, Verdict
from tests.api.conftest import Shell, World


@pytest.fixture(autouse=True)
def _sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "POLL_S", 0.1)
    monkeypatch.setattr(live, "STEPS_S", 0.4)


@pytest.fixture
def lease(world: World) -> Lease:
    world.submit({})
    return claim(world)


def claim(world: World) -> Lease:
    queue = world.farm.queue
    (lease,) = queue.claim(queue.lanes()[0].id, "test", 1, 30.0)
    return lease


def tell(world: World, lease: Lease, step: int) -> None:
    world.farm.queue.tell_steps([(lease, Step(lease.job_id, lease.attempt, step, 8))])


def show(world: World, lease: Lease) -> None:
    allowed = Verdict(Stage.PREVIEW, "f" * 64, Outcome.ALLOW, "p" * 64, "e" * 64)
    (verdict_id,) = world.farm.queue.record([(lease, allowed)])
    assert verdict_id is not None
    assert world.farm.queue.keep_preview(lease, verdict_id, Signed(b"signed", "image/webp", "m" * 64, "urn:test"))


def test_a_running_job_says_how_far_it_is(world: World, lease: Lease) -> None:
    path = f"/api/jobs/{lease.job_id}"
    assert world.get(path).json()["progress"] is None
    tell(world, lease, 3)
    assert world.get(path).json()["progress"] == {"attempt": 1, "step": 3, "total": 8, "preview": None}
    show(world, lease)
    address = world.get(path).json()["progress"]["preview"]
    answer = world.get(address)
    assert (answer.content, answer.headers["content-type"]) == (b"signed", "image/webp")
    assert answer.headers["cache-control"] == "no-store"
    world.farm.queue.cancel_job(lease.job_id, "ann")
    assert world.get(path).json()["progress"] is None
    assert world.get(address).status_code == 404


def test_a_preview_is_as_unknown_to_another_project_as_its_job(world: World, lease: Lease) -> None:
    tell(world, lease, 3)
    address = f"/api/jobs/{lease.job_id}/preview"
    assert world.get(address).status_code == 404
    show(world, lease)
    assert world.get(address).status_code == 200
    for role in ("submitter", "reviewer", "operator"):
        assert world.get(address, f"theirs/{role}").status_code == 404
    assert world.client.get(address).status_code == 401


def read_until(address: str, key: str, enough: Any, **options: Any) -> list[dict[str, str]]:
    """The events of a stream as they stand in it, field by field."""
    found: list[dict[str, str]] = []
    fields: dict[str, str] = {}
    headers = {"Authorization": f"Bearer {key}"} | options.pop("headers", {})
    with httpx.stream("GET", f"{address}/api/events", headers=headers, timeout=20, **options) as answer:
        for line in answer.iter_lines():
            if line:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
            elif fields:
                found, fields = [*found, fields], {}
                if enough(found):
                    break
    return found


def test_the_stream_tells_of_steps_between_events_and_leaves_the_replay_alone(
    world: World, address: str, lease: Lease
) -> None:
    world.submit({}, who="theirs/submitter")
    theirs = next(one for lane in world.farm.queue.lanes() for one in world.farm.queue.claim(lane.id, "test", 1, 30.0))
    events.seal(world.farm.queue.engine)
    over = threading.Event()

    def work() -> None:
        for step in range(1, 1000):
            tell(world, lease, step)
            tell(world, theirs, step)
            if over.wait(0.05):
                return

    worker = threading.Thread(target=work)
    worker.start()
    began = time.monotonic()
    try:
        found = read_until(
            address,
            world.keys["ours/submitter"],
            lambda some: [one.get("event") for one in some].count("progress") == 3,
            params={"after": 0},
        )
    finally:
        over.set()
        worker.join()
    steps = [one for one in found if one.get("event") == "progress"]
    assert time.monotonic() - began >= 2 * live.STEPS_S, "at most one in that time"
    assert all("id" not in one for one in steps)
    assert all(one["id"].isdecimal() for one in found if "data" in one and one["event"] != "progress")
    data = [json.loads(one["data"]) for one in steps]
    assert {one["job_id"] for one in data} == {lease.job_id}
    assert [one["data"]["step"] for one in data] == sorted({one["data"]["step"] for one in data})


def test_a_step_that_is_not_new_is_not_told_again(world: World, address: str, lease: Lease) -> None:
    tell(world, lease, 3)

    def later() -> None:
        time.sleep(3 * live.STEPS_S)
        world.submit({}, again=True)
        events.seal(world.farm.queue.engine)

    thread = threading.Thread(target=later)
    thread.start()
    key = world.keys["ours/submitter"]
    found = read_until(address, key, lambda some: any(one.get("event") == "batch_open" for one in some))
    thread.join()
    assert [one["event"] for one in found if "event" in one].count("progress") == 1


def test_show_and_watch_tell_of_running_jobs(
    world: World, address: str, lease: Lease, monkeypatch: pytest.MonkeyPatch, shell: Shell
) -> None:
    monkeypatch.setenv("FARM_URL", address)
    monkeypatch.setenv("FARM_KEY", world.keys["ours/submitter"])
    monkeypatch.setattr(session, "STEPS_S", 0.0)
    monkeypatch.setattr(session, "POLL_S", 0.05)
    tell(world, lease, 3)
    assert shell("show", f"job:{lease.job_id}") == 0
    assert "step 3 of 8" in shell.out
    assert shell("show", lease.batch_id) == 0
    assert "running:" in shell.out

    def work() -> None:
        time.sleep(0.5)
        tell(world, lease, 4)
        time.sleep(0.5)
        world.farm.queue.cancel_job(lease.job_id, "ann")

    thread = threading.Thread(target=work)
    thread.start()
    assert shell("watch", lease.batch_id) == 0
    thread.join()
    for step in (3, 4):
        assert f"; job {lease.job_id}: step {step} of 8\n" in shell.err
    assert shell.err.endswith("batch 1: 1 of 1: 1 cancelled\n")


def test_without_a_terminal_steps_alone_are_told_seldom(monkeypatch: pytest.MonkeyPatch, shell: Shell) -> None:
    def batch(step: int, settled: bool = False) -> dict[str, Any]:
        counts = {"published": 1} if settled else {"leased": 1}
        running = [] if settled else [{"job_id": 7, "step": step, "total": 50}]
        return {"counts": counts, "jobs": 1, "state": "open", "settled": settled, "waits": [], "running": running}

    said = [*(batch(step) for step in range(50)), batch(50, settled=True)]

    class Client:
        def batch(self, _: int) -> dict[str, Any]:
            return said.pop(0)

    monkeypatch.setattr(session, "POLL_S", 0.001)
    session._lines(Client(), 1)  # type: ignore[arg-type]
    assert shell.capsys.readouterr().err.splitlines() == [
        "batch 1: 0 of 1: 1 leased; job 7: step 0 of 50",
        "batch 1: 1 of 1: 1 published",
    ]


def test_on_a_terminal_each_running_job_has_a_line_of_its_own(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    running = [{"job_id": job, "step": job, "total": 8} for job in (3, 4)]
    both = {"counts": {"leased": 2}, "jobs": 2, "state": "open", "settled": False, "waits": [], "running": running}
    one = both | {"counts": {"leased": 1, "published": 1}, "running": running[1:]}
    done = both | {"counts": {"published": 2}, "running": [], "settled": True}
    said = [both, one, done]

    class Client:
        def batch(self, _: int) -> dict[str, Any]:
            return said.pop(0)

    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(session, "POLL_S", 0.3)
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    session._bar(Client(), 1)  # type: ignore[arg-type]
    err = shell.capsys.readouterr().err
    assert "  job 3" in err
    assert "4/8" in err
    assert "job" not in err.splitlines()[-1], "nothing runs any more"
