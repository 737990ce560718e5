"""`farm up`: the farm's processes as children that are restarted when they die, and that never outlive this one."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from farm.errors import Conflict

log = logging.getLogger("farm.supervisor")
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0
SETTLED_S = 60.0  # a child that lived this long starts again after the first pause
KILLED_S = 1.0  # and so does one that another process killed, if it lived this long
GRACE_S = 10.0
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Child:
    """One process to keep alive; `env` is added to ours, of which what begins like one of `without` is left out."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()


@dataclass(slots=True)
class Kept:
    """A child as it runs now, or its last exit and when it starts again."""

    child: Child
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    again: float = 0.0
    deaths: int = 0  # in a row, each before it had settled
    code: int | None = None

    def status(self, now: float) -> str:
        if self.process is not None:
            return f"{self.child.name}: running, pid {self.process.pid}"
        return f"{self.child.name}: {ended(self.code)}, starts again in {max(0.0, self.again - now):.1f} s"


def pause(deaths: int) -> float:
    """The pause before the next start, doubled with each death in a row."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(deaths - 1, 16))


def settled_after(code: int) -> float:
    return KILLED_S if code == -signal.SIGKILL else SETTLED_S


def ended(code: int | None) -> str:
    if code is None:
        return "not started"
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


class Supervisor:
    """Starts its children in the order given, and stops them in the reverse order."""

    def __init__(self, home: Path, children: Sequence[Child], *, clock: Callable[[], float] = time.monotonic) -> None:
        self.home, self.clock = home.absolute(), clock
        self.kept = [Kept(child) for child in children]
        self.stopping = threading.Event()

    def run(self) -> int:
        """Until SIGTERM, SIGINT or `stop()`. In the main thread: children die with the thread that made them."""
        with alone(self.home):
            before = {number: signal.signal(number, self._stop_signal) for number in (signal.SIGTERM, signal.SIGINT)}
            try:
                while not self.stopping.is_set():
                    self.step()
                    self.stopping.wait(POLL_S)
            finally:
                self._end_all()
                for number, handler in before.items():
                    signal.signal(number, handler)
        return 0

    def stop(self) -> None:
        self.stopping.set()

    def step(self) -> None:
        for kept in self.kept:
            if kept.process is None:
                if self.clock() >= kept.again:
                    self._start(kept)
            elif (code := kept.process.poll()) is not None:
                self._died(kept, kept.process.pid, code)

    def status(self) -> list[str]:
        return [kept.status(self.clock()) for kept in self.kept]

    def _start(self, kept: Kept) -> None:
        name, kept.started = kept.child.name, self.clock()
        try:
            kept.process = self._launched(kept.child)
        except OSError as error:  # the disk is full, or there are too many processes: both may pass
            log.warning("%s: could not be started: %s", name, error)
            self._rest(kept, kept.deaths + 1, None)
            return
        with self._noting(name) as note:
            note.write_text(f"{kept.process.pid}\n")
        log.info(kept.status(kept.started))

    def _launched(self, child: Child) -> subprocess.Popen[bytes]:
        with self._log(child.name).open("ab") as file:
            return subprocess.Popen(
                list(child.argv),
                env=environment(child),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a terminal's Ctrl-C comes to us alone, and what a child leaves has a group
                preexec_fn=dies_with(os.getpid()),  # noqa: PLW1509 - it only makes system calls
            )

    def _died(self, kept: Kept, pid: int, code: int) -> None:
        _kill_group(pid, signal.SIGKILL)  # what it started itself and left behind
        self._forget(kept.child.name)
        settled = self.clock() - kept.started >= settled_after(code)
        self._rest(kept, 1 if settled else kept.deaths + 1, code)

    def _rest(self, kept: Kept, deaths: int, code: int | None) -> None:
        now = self.clock()
        kept.deaths, kept.process, kept.code, kept.again = deaths, None, code, now + pause(deaths)
        log.warning(kept.status(now))

    def _end_all(self) -> None:
        for kept in reversed(self.kept):
            if kept.process is not None:
                self._end(kept, kept.process)

    def _end(self, kept: Kept, process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            log.warning("%s did not end in %.0f s: killed", kept.child.name, GRACE_S)
        _kill_group(process.pid, signal.SIGKILL)
        kept.process, kept.code = None, process.wait()
        self._forget(kept.child.name)

    def _forget(self, name: str) -> None:
        with self._noting(name) as note:
            note.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _noting(self, name: str) -> Iterator[Path]:
        """A child lives on where its number could not be noted."""
        try:
            yield _made(self.home / "run") / f"{name}.pid"
        except OSError as error:
            log.warning("%s: its pid could not be noted: %s", name, error)

    def _log(self, name: str) -> Path:
        return _made(self.home / "log") / f"{name}.log"

    def _stop_signal(self, number: int, frame: object) -> None:
        log.info("%s: stopping", signal.Signals(number).name)
        self.stop()


def environment(child: Child) -> dict[str, str]:
    return {name: said for name, said in os.environ.items() if not name.startswith(child.without)} | dict(child.env)


def closed_to_others() -> None:
    """No other process of this user reads our memory, or what we were started with: the kernel hides under /proc what
    it may not dump. From root it hides nothing."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def dies_with(parent: int, number: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
    """For the child, between fork and exec: the kernel sends it this signal when its parent dies, however that dies."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # looked up before the fork: after it, only plain calls

    def bind() -> None:
        prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

    return bind


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _kill_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


@contextlib.contextmanager
def alone(home: Path) -> Iterator[None]:
    """One supervisor a home. The lock goes with the process that holds it, so it is never stale."""
    with (_made(home / "run") / "up.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise Conflict(
                f"a farm runs in {home} already (pid {lock.read().strip() or 'unknown'})",
                fix="stop it, or choose another FARM_HOME",
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield
