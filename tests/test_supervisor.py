"""The supervisor against small children that sleep, die at once, ignore SIGTERM or leave children behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from farm import supervisor
from farm.commands import starting
from farm.config import Settings
from farm.supervisor import Child, Supervisor, ended, pause

SLEEP = (sys.executable, "-c", "import time; time.sleep(600)")
STUBBORN = (sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)")
LITTER = (sys.executable, "-c", f"import subprocess, time; subprocess.Popen({list(SLEEP)!r}); time.sleep(600)")
UP = """
import sys
from pathlib import Path
from farm.supervisor import Child, Supervisor
sys.exit(Supervisor(Path(sys.argv[1]), [Child(name, sys.argv[2:]) for name in ("one", "two")]).run())
"""


def until(true: Callable[[], Any], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)


def pid(home: Path, name: str) -> int:
    path = home / "run" / f"{name}.pid"
    text = path.read_text() if path.exists() else ""
    return int(text) if text else 0


def alive(number: int) -> bool:
    return psutil.pid_exists(number) and psutil.Process(number).status() != psutil.STATUS_ZOMBIE


@pytest.fixture
def up(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", UP, str(tmp_path), *SLEEP])
    until(lambda: pid(tmp_path, "one") and pid(tmp_path, "two"))
    yield process
    process.kill()
    process.wait()


def test_a_killed_child_comes_back_and_its_sibling_stays(up: subprocess.Popen[bytes], tmp_path: Path) -> None:
    one, two = pid(tmp_path, "one"), pid(tmp_path, "two")
    os.kill(one, signal.SIGKILL)
    until(lambda: pid(tmp_path, "one") not in {0, one})
    assert alive(pid(tmp_path, "one"))
    assert pid(tmp_path, "two") == two
    assert alive(two)


def test_nothing_outlives_a_killed_supervisor(up: subprocess.Popen[bytes], tmp_path: Path) -> None:
    children = [pid(tmp_path, "one"), pid(tmp_path, "two")]
    up.kill()
    until(lambda: not any(alive(child) for child in children))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_in_order(up: subprocess.Popen[bytes], tmp_path: Path, number: signal.Signals) -> None:
    children = [pid(tmp_path, "one"), pid(tmp_path, "two")]
    up.send_signal(number)
    assert up.wait(15) == 0
    assert not any(alive(child) for child in children)
    assert not list((tmp_path / "run").glob("*.pid"))


def test_one_home_has_one_supervisor(up: subprocess.Popen[bytes], tmp_path: Path) -> None:
    argv = [sys.executable, "-c", UP, str(tmp_path), *SLEEP]
    second = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=20)
    assert second.returncode != 0
    assert f"runs in {tmp_path} already (pid {up.pid})" in second.stderr
    assert up.poll() is None


def test_a_child_that_ends_at_once_does_not_spin(tmp_path: Path) -> None:
    now = [0.0]
    brief = Child("brief", (sys.executable, "-c", "print('hello'); raise SystemExit(3)"))
    keeper = Supervisor(tmp_path, [brief], clock=lambda: now[0])
    kept = keeper.kept[0]
    for _ in range(3):
        keeper.step()
        until(lambda: (keeper.step(), kept.process is None)[1])  # type: ignore[func-returns-value]
        keeper.step()  # its pause is not over
        assert kept.process is None
        now[0] = kept.again
    assert [pause(n) for n in (1, 2, 3)] == [0.2, 0.4, 0.8]
    assert kept.again == pytest.approx(0.2 + 0.4 + 0.8)
    assert "brief: ended with code 3" in keeper.status()[0]
    assert (tmp_path / "log" / "brief.log").read_text() == "hello\n" * 3


def test_a_child_that_cannot_be_started_is_tried_again_and_its_sibling_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now, start = [0.0], subprocess.Popen

    def full(argv: list[str], **options: Any) -> subprocess.Popen[bytes]:
        if argv == ["second"]:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return start(argv, **options)

    monkeypatch.setattr(subprocess, "Popen", full)
    keeper = Supervisor(tmp_path, [Child("first", SLEEP), Child("second", ["second"])], clock=lambda: now[0])
    first, second = keeper.kept
    try:
        for deaths in (1, 2, 3):
            keeper.step()
            keeper.step()  # its pause is not over
            assert (second.process, second.deaths) == (None, deaths)
            assert second.again == pytest.approx(now[0] + pause(deaths))
            now[0] = second.again
        assert first.process is not None
        assert first.process.poll() is None
        assert "second: could not be started: [Errno 11] Resource temporarily unavailable" in caplog.text
        second.child = Child("second", SLEEP)
        keeper.step()
        assert second.process is not None
    finally:
        keeper._end_all()


def test_a_full_disk_ends_neither_the_supervisor_nor_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    keeper = Supervisor(tmp_path, [Child("one", SLEEP)])
    monkeypatch.setattr(Path, "write_text", full)
    monkeypatch.setattr(Path, "unlink", full)
    keeper.step()
    process = keeper.kept[0].process
    assert process is not None
    assert "No space left" in caplog.text
    process.kill()
    until(lambda: (keeper.step(), keeper.kept[0].process not in {None, process})[1])  # type: ignore[func-returns-value]
    keeper._end_all()
    assert keeper.kept[0].process is None
    assert caplog.text.count("No space left") == 4


def test_whoever_waits_for_a_farm_to_end_waits_for_each_of_its_children(tmp_path: Path) -> None:
    farm = starting.supervisor(Settings(home=tmp_path))
    assert len(farm.kept) * supervisor.GRACE_S < starting.STOP_S


def test_a_long_life_forgets_earlier_deaths(tmp_path: Path) -> None:
    now = [0.0]
    keeper = Supervisor(tmp_path, [Child("brief", (sys.executable, "-c", ""))], clock=lambda: now[0])
    kept = keeper.kept[0]
    kept.deaths = 6
    keeper.step()
    now[0] = supervisor.SETTLED_S
    assert kept.process is not None
    kept.process.wait()
    keeper.step()
    assert kept.deaths == 1
    assert kept.again == pytest.approx(now[0] + supervisor.FIRST_PAUSE_S)


def test_being_killed_is_held_against_a_child_only_at_its_start() -> None:
    assert supervisor.settled_after(-signal.SIGKILL) < supervisor.settled_after(1) == supervisor.settled_after(-15)


def test_the_pause_has_an_end() -> None:
    assert pause(1000) == supervisor.LONGEST_PAUSE_S
    assert all(pause(n) <= pause(n + 1) for n in range(1, 50))


def test_what_a_killed_child_leaves_is_swept(tmp_path: Path) -> None:
    keeper = Supervisor(tmp_path, [Child("litter", LITTER)])
    keeper.step()
    process = keeper.kept[0].process
    assert process is not None
    until(lambda: psutil.Process(process.pid).children())
    left = psutil.Process(process.pid).children()[0].pid
    process.kill()
    process.wait()
    keeper.step()
    until(lambda: not alive(left))


def test_a_stubborn_child_is_killed_after_its_grace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "GRACE_S", 0.3)
    keeper = Supervisor(tmp_path, [Child("stubborn", STUBBORN, {"ADDED": "1"})])
    keeper.step()
    process = keeper.kept[0].process
    assert process is not None
    until(lambda: psutil.Process(process.pid).environ().get("ADDED") == "1")
    time.sleep(0.3)  # until it has set its handler
    keeper._end_all()
    assert keeper.kept[0].code == -signal.SIGKILL
    assert ended(-9) == "ended by SIGKILL"
