"""Hostile bytes are opened in a child process with limits on memory and time (law 12)."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from typing import NoReturn

from farm.errors import BadInput

MEMORY_MB = 2048
SECONDS = 30


def limit(memory_mb: int = MEMORY_MB, seconds: int = SECONDS) -> None:
    """Called by the child before it reads a byte of what it was given."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run(module: str, arguments: Sequence[str], data: bytes, *, seconds: int = SECONDS) -> bytes:
    """Run `python -m module arguments` on the bytes; its standard output is the answer.

    The module calls `limit()` first, and exits 2 with a JSON problem (`detail`, `fix`) on standard error to refuse.
    """
    command = [sys.executable, "-m", module, *arguments]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise BadInput(f"opening the file took more than {seconds} s", fix="send a smaller file") from error
    if done.returncode == 0:
        return done.stdout
    if done.returncode == 2:
        problem = json.loads(done.stderr.splitlines()[-1])
        raise BadInput(problem["detail"], fix=problem.get("fix"))
    raise BadInput("the file could not be opened within the limits on memory and time", fix="send a smaller file")


def refuse(detail: str, fix: str) -> NoReturn:
    """In the child: say why, and end."""
    print(json.dumps({"detail": detail, "fix": fix}), file=sys.stderr)
    sys.exit(2)
