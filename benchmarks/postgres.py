"""A PostgreSQL server of our own in a temporary folder, for tests and benchmarks. It is gone when the block ends."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

USERS = ("postgres", "nobody")  # the server refuses to run as root


class NoServer(Exception):
    """What is missing, in words."""


def find() -> Path:
    """The folder with initdb and pg_ctl: on PATH, or where Debian puts it."""
    found = shutil.which("pg_ctl")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "pg_ctl").exists():
            return folder
    raise NoServer(
        "no PostgreSQL server: neither pg_ctl on PATH nor /usr/lib/postgresql/*/bin (Debian: apt install postgresql)"
    )


@contextmanager
def server(*, fsync: bool = True) -> Iterator[str]:
    """Yields a SQLAlchemy URL. `fsync=False` is for tests: quicker, and worthless after a power cut."""
    tools, user = find(), _user()
    home = Path(tempfile.mkdtemp(prefix="farm-postgres-"))
    try:
        if user:
            shutil.chown(home, user)
        port = _free_port()
        _run(
            user, [str(tools / "initdb"), "-D", f"{home}/data", "-U", "farm", "-A", "trust", "-E", "UTF8", "--no-sync"]
        )
        options = f"-c port={port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='{home}'"
        options += "" if fsync else " -c fsync=off -c synchronous_commit=off"
        control = [str(tools / "pg_ctl"), "-D", f"{home}/data", "-w"]
        _run(user, [*control, "-l", f"{home}/log", "-o", options, "start"])
        try:
            yield f"postgresql+psycopg://farm@127.0.0.1:{port}/postgres"
        finally:
            _run(user, [*control, "-m", "immediate", "stop"])
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _user() -> str | None:
    """Whom to become: nobody, unless we are root."""
    if os.geteuid() != 0:
        return None
    for name in USERS:
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise NoServer(f"PostgreSQL refuses to run as root, and there is none of the users {', '.join(USERS)}")


def _run(user: str | None, command: list[str]) -> None:
    done = subprocess.run(
        command,
        user=user,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise NoServer(f"{Path(command[0]).name} failed: {done.stdout.strip()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
