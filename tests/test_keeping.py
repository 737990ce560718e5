"""`farm dispatch`'s keeper against small children that are killed, fail, or stop when they are told."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from farm import keeping
from farm.commands import starting
from farm.keeping import Keeper

LIVES = "import sys, pathlib; note = pathlib.Path(sys.argv[1]); note.write_text(note.read_text() + 'x'); "
KEPT = "import sys; from farm.keeping import Keeper; sys.exit(Keeper(sys.argv[1:]).run())"
SLEEPS = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(0)); print('up', flush=True); time.sleep(60)"


@pytest.fixture
def note(tmp_path: Path) -> Path:
    path = tmp_path / "lives"
    path.write_text("")
    return path


def child(note: Path, then: str) -> list[str]:
    return [sys.executable, "-c", LIVES + then, str(note)]


def test_one_that_a_signal_ended_is_started_again(note: Path) -> None:
    aborts_twice = "import os; len(note.read_text()) < 3 and os.abort()"
    assert Keeper(child(note, aborts_twice)).run() == 0
    assert note.read_text() == "xxx"


@pytest.mark.parametrize("code", [0, 1, 2])
def test_one_that_never_began_tells_its_error_once(note: Path, code: int) -> None:
    assert Keeper(child(note, f"sys.exit({code})")).run() == code
    assert note.read_text() == "x"


def test_one_that_fails_after_it_had_begun_is_started_again(note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "BEGUN_S", 0.0)
    assert Keeper(child(note, "sys.exit(1 if len(note.read_text()) < 2 else 0)")).run() == 0
    assert note.read_text() == "xx"


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_what_it_is_told_its_child_is_told(asked: signal.Signals) -> None:
    argv = [sys.executable, "-c", KEPT, sys.executable, "-c", SLEEPS]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as keeper:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == b"up\n"
        keeper.send_signal(asked)
        assert keeper.wait(20) == 0


def test_a_child_does_not_outlive_it() -> None:
    argv = [sys.executable, "-c", KEPT, sys.executable, "-c", SLEEPS]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as keeper:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == b"up\n"
        (lives,) = psutil.Process(keeper.pid).children()
        keeper.kill()
        end = time.monotonic() + 20
        while lives.is_running() and lives.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < end
            time.sleep(0.02)


def test_farm_up_keeps_its_dispatcher_itself() -> None:
    assert starting.argv("dispatch")[-2:] == ["dispatch", "--unkept"]
    assert starting.argv("signer")[-1] == "signer"
