"""What is kept of running jobs: whole or not at all, for its owner alone, and gone when the job is."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from farm.dispatcher import Dispatcher
from farm.errors import Fault
from farm.job import Cause
from farm.job_queue import NewJob
from farm.ports import Outcome, Rendered, RenderRequest
from farm.scratch import Scratch
from tests.fakes import away
from tests.test_pipeline import FakePorts, fake_ports, lease_all, run, spec, states, submit


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    return Scratch(tmp_path / "home" / "scratch")


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[FakePorts]:
    yield from fake_ports(tmp_path)


def test_what_is_written_is_read_until_it_is_dropped(scratch: Scratch) -> None:
    assert (scratch.read(7), scratch.jobs()) == (None, set())
    scratch.write(7, b"first")
    scratch.write(7, b"second")
    scratch.write(8, b"other")
    assert (scratch.read(7), scratch.jobs()) == (b"second", {7, 8})
    scratch.drop(7)
    scratch.drop(7)
    assert (scratch.read(7), scratch.jobs()) == (None, {8})


def test_it_is_nobody_elses(scratch: Scratch) -> None:
    before = os.umask(0)
    try:
        scratch.write(7, b"latent")
    finally:
        os.umask(before)
    assert stat.S_IMODE(scratch.folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in scratch.folder.iterdir()] == [0o600]


def test_half_a_file_is_never_read_and_is_cleared_with_its_job(
    scratch: Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch.write(7, b"whole")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    scratch.write(7, b"half")
    scratch.write(8, b"half")
    assert (scratch.read(7), scratch.read(8)) == (b"whole", None)
    assert scratch.jobs() == {7, 8}
    scratch.drop(8)
    scratch.drop(7)
    assert list(scratch.folder.iterdir()) == []


def test_a_folder_that_cannot_be_is_no_trouble_of_the_job_s(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    scratch = Scratch(tmp_path / "file" / "scratch")
    scratch.write(7, b"latent")
    assert scratch.jobs() == set()


def test_what_the_last_job_leaves_goes_with_it_when_the_dispatcher_stops(
    ports: FakePorts, scratch: Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = replace(ports, scratch=scratch)
    began, go, drawn = threading.Event(), threading.Event(), ports.renderer.render

    def render(requests: Sequence[RenderRequest], *rest: Any) -> list[Rendered | Fault]:
        scratch.write(requests[0].job_id, b"latent")
        began.set()
        assert go.wait(20)
        return drawn(requests, *rest)

    monkeypatch.setattr(ports.renderer, "render", render)
    submit(ports, NewJob(line=1, spec=spec()))
    dispatcher = Dispatcher(ports)
    thread = threading.Thread(target=dispatcher.run)
    thread.start()
    assert began.wait(20)
    dispatcher.stop()
    go.set()
    thread.join(timeout=20)
    assert states(ports) == {"published": 1}
    assert scratch.jobs() == set()


@pytest.mark.parametrize("end", ["published", "held", "blocked", "failed", "cancelled"])
def test_it_is_gone_when_its_job_has_ended_and_not_before(ports: FakePorts, scratch: Scratch, end: str) -> None:
    ports = replace(ports, scratch=scratch)
    dispatcher = Dispatcher(ports)
    submit(ports, NewJob(line=1, spec=spec()))
    scratch.write(1, b"latent")
    scratch.write(99, b"of a job that never was")
    dispatcher._tidy()
    assert scratch.jobs() == {1}, "it is queued"
    (lease,) = lease_all(ports)
    dispatcher._tidy()
    assert scratch.jobs() == {1}, "it is leased"
    if end == "cancelled":
        ports.queue.cancel_job(1, "ann")
    elif end == "failed":
        ports.queue.fault(lease, away(Cause.BAD_INPUT))
    else:
        ports.queue.fault(lease, away(Cause.LEASE_LOST), retry_s=0.0)
        dispatcher._tidy()
        assert scratch.jobs() == {1}, "it is tried again"
        outcome = {"published": Outcome.ALLOW, "held": Outcome.REVIEW, "blocked": Outcome.BLOCK}[end]
        ports.gate.frame_outcome = lambda _: outcome
        run(ports)
    assert states(ports) == {end: 1}
    dispatcher._tidy()
    assert scratch.jobs() == set()
