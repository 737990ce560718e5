"""Hostile bytes are opened in a child process with limits on memory and time (law 12).

A file that needs more than its memory or processor time is at fault. A child that could not be started, that another
process ended, or that did not get its processor time while the clock ran is nobody's fault: Fault OVERLOADED. One that
ends with an error nobody foresaw is most likely ours, and told with its words."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import NoReturn

from farm.errors import BadInput, Fault
from farm.job import Cause

MEMORY_MB = 2048
SECONDS = 30  # of processor time
PATIENCE = 4  # times as long by the clock: a busy machine is no fault of the file
ENDED_BY_OTHERS = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP}  # want of memory, or a shutdown

REFUSED, OUT_OF_MEMORY = 2, 3  # exit codes


def limit(memory_mb: int = MEMORY_MB, seconds: int = SECONDS) -> None:
    """Called by the child before it reads a byte of what it was given."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # SIGXCPU first: SIGKILL would not say why
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.excepthook = _end


def run(module: str, arguments: Sequence[str], data: bytes, *, patience_s: float = SECONDS * PATIENCE) -> bytes:
    """Run `python -m module arguments` on the bytes; its standard output is the answer.

    The module calls `limit()` first, and exits 2 with a JSON problem (`detail`, `fix`) on standard error to refuse.
    """
    command = [sys.executable, "-m", module, *arguments]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=patience_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise Fault(Cause.OVERLOADED, f"a file was not opened in {patience_s:g} s") from error
    except OSError as error:
        raise Fault(Cause.OVERLOADED, f"no process to open a file in: {error}") from error
    if done.returncode == 0:
        return done.stdout
    if done.returncode == REFUSED:
        problem = json.loads(done.stderr.splitlines()[-1])
        raise BadInput(problem["detail"], fix=problem.get("fix"))
    if done.returncode in ENDED_BY_OTHERS:
        name = signal.Signals(-done.returncode).name
        raise Fault(Cause.OVERLOADED, f"{name} ended the process that opened a file: is there memory enough?")
    if done.returncode < 0 or done.returncode == OUT_OF_MEMORY:
        raise BadInput("the file could not be opened within the limits on memory and time", fix="send a smaller file")
    said = done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"
    raise Fault(Cause.RENDER_ERROR, f"the process that opened a file failed: {said.splitlines()[-1]}")


def refuse(detail: str, fix: str) -> NoReturn:
    """In the child: say why, and end."""
    print(json.dumps({"detail": detail, "fix": fix}), file=sys.stderr)
    sys.exit(REFUSED)


def _end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, MemoryError):
        os._exit(OUT_OF_MEMORY)
    sys.__excepthook__(kind, error, trace)
