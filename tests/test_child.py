"""Who is at fault when a file is not opened: the file, or the machine."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from farm import child
from farm.errors import BadInput, Fault
from farm.job import CAUSES, FINAL, Cause, Payer

Open = Callable[..., bytes]
HEAD = "import os, signal, sys, time\nfrom farm import child\n"


@pytest.fixture
def opened_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def run(program: str, patience_s: float = 60.0) -> bytes:
        (tmp_path / "opener.py").write_text(HEAD + program)
        return child.run("opener", [], b"the file", patience_s=patience_s)

    return run


def test_the_answer_is_what_it_prints(opened_by: Open) -> None:
    assert opened_by("child.limit()\nprint(sys.stdin.read())") == b"the file\n"


@pytest.mark.parametrize(
    ("program", "word"),
    [
        ("child.refuse('no picture', 'send one')", "no picture"),
        ("child.limit(seconds=1)\nwhile True: pass", "within the limits"),
        ("child.limit(memory_mb=512)\nbytes(1 << 30)", "within the limits"),
        ("os.abort()", "within the limits"),
    ],
)
def test_a_file_that_needs_too_much_is_at_fault(opened_by: Open, program: str, word: str) -> None:
    with pytest.raises(BadInput, match=word):
        opened_by(program)


@pytest.mark.parametrize(
    ("program", "word"),
    [
        ("time.sleep(60)", "not opened in 0.5 s"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGTERM)", "SIGTERM"),
    ],
)
def test_a_machine_without_room_or_time_is_at_fault(opened_by: Open, program: str, word: str) -> None:
    with pytest.raises(Fault, match=word) as met:
        opened_by(program, 0.5 if "sleep" in program else 60.0)
    assert met.value.cause is Cause.OVERLOADED
    assert CAUSES[Cause.OVERLOADED] is Payer.ENVIRONMENT


def test_an_error_of_our_own_is_told_and_not_taken_for_the_files(opened_by: Open) -> None:
    with pytest.raises(Fault, match="KeyError: 'a format we forgot'") as met:
        opened_by("child.limit()\n{}['a format we forgot']")
    assert met.value.cause not in FINAL
    with pytest.raises(Fault, match="exit code 7"):
        opened_by("sys.exit(7)")


def test_a_process_that_cannot_be_started_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "run", no_room)
    with pytest.raises(Fault, match="temporarily unavailable") as met:
        child.run("opener", [], b"")
    assert met.value.cause is Cause.OVERLOADED
