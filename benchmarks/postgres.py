"""A PostgreSQL server of our own in a temporary folder, for tests and benchmarks. It is gone when the block ends."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

USERS = ("postgres", "nobody")  # the server refuses to run as root
START_S = 60.0


class NoServer(Exception):
    """What is missing, in words."""


def find() -> Path:
    """The folder with the server's programs: on PATH, or where Debian puts it."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise NoServer("no PostgreSQL server, neither on PATH nor in /usr/lib/postgresql (Debian: apt install postgresql)")


@contextmanager
def server(*, fsync: bool = True) -> Iterator[str]:
    """Yields a SQLAlchemy URL. `fsync=False` is for tests: quicker, and worthless after a power cut."""
    tools, user, port = find(), _user(), _free_port()
    home = Path(tempfile.mkdtemp(prefix="farm-postgres-"))
    try:
        if user:
            shutil.chown(home, user)
        _initialise(tools, home, user)
        process = _start(tools, home, user, port, fsync)
        try:
            _wait(process, home, port)
            yield f"postgresql+psycopg://farm@127.0.0.1:{port}/postgres"
        finally:
            process.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
            process.wait()
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _user() -> str | None:
    """Whom to become: nobody, unless we are root."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    for name in USERS:
        if name in known:
            return name
    raise NoServer(f"PostgreSQL refuses to run as root, and there is none of the users {', '.join(USERS)}")


def _initialise(tools: Path, home: Path, user: str | None) -> None:
    command = [str(tools / "initdb"), "-D", f"{home}/data", "-U", "farm", "-A", "trust", "-E", "UTF8", "--no-sync"]
    done = subprocess.run(command, check=False, user=user, cwd="/", capture_output=True, text=True)
    if done.returncode:
        raise NoServer(f"initdb failed: {done.stderr.strip()}")


def _start(tools: Path, home: Path, user: str | None, port: int, fsync: bool) -> subprocess.Popen[bytes]:
    options = ["-p", str(port), "-h", "127.0.0.1", "-k", str(home)]
    options += [] if fsync else ["-c", "fsync=off", "-c", "synchronous_commit=off"]
    command = [str(tools / "postgres"), "-D", f"{home}/data", *options]
    with (home / "log").open("wb") as log:
        return subprocess.Popen(command, user=user, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _wait(process: subprocess.Popen[bytes], home: Path, port: int) -> None:
    until = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < until:
        try:
            psycopg.connect(host="127.0.0.1", port=port, user="farm", dbname="postgres").close()
        except psycopg.OperationalError:
            time.sleep(0.05)
        else:
            return
    raise NoServer(f"PostgreSQL did not start: {(home / 'log').read_text()[-500:].strip()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
