"""`farm dispatch` by itself: Ray ends a process that was connected when its head is lost for long, and somebody has to
start the dispatcher again. `farm up` does for its children; without it, this small parent does."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

from farm.supervisor import dies_with, ended, pause

log = logging.getLogger("farm.keeping")
BEGUN_S = 10.0  # what ends sooner, and not by a signal, never began: its error is told once
SETTLED_S = 60.0
WRONG_USAGE = 2
ASKED = (signal.SIGTERM, signal.SIGINT)


class Keeper:
    """Runs one command, and again when it is ended by a signal that was not ours or fails after it had begun."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.argv = list(argv)
        self.process: subprocess.Popen[bytes] | None = None
        self.stopping = False

    def run(self) -> int:
        """Until it ends by itself, or as it was told; its exit code. In the main thread: it dies with that."""
        deaths, began = 0, False
        with _signals(self.stop):
            while not self.stopping:
                started = time.monotonic()
                code = self._once()
                lived_s = time.monotonic() - started
                began = began or code < 0 or lived_s >= BEGUN_S
                if self.stopping or code in (0, WRONG_USAGE) or not began:
                    return max(code, 0)
                deaths = 1 if lived_s >= SETTLED_S else deaths + 1
                log.warning("the dispatcher %s; it starts again in %.1f s", ended(code), pause(deaths))
                self._rest(pause(deaths))
        return 0

    def stop(self) -> None:
        self.stopping = True
        if self.process is not None:
            self.process.terminate()

    def _once(self) -> int:
        bound = dies_with(os.getpid())
        self.process = subprocess.Popen(self.argv, start_new_session=True, preexec_fn=bound)  # noqa: PLW1509
        if self.stopping:  # it was told so in between
            self.process.terminate()
        return self.process.wait()

    def _rest(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.stopping and time.monotonic() < end:
            time.sleep(0.05)


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    before = {number: signal.signal(number, lambda *_: stop()) for number in ASKED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
