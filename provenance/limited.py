"""Verify hostile files in a child with limits on memory and time: one child for many files, a new one when it
dies.

Over a socket pair the parent sends a line of JSON (length, claimed type) and the bytes; the child answers with a line
of JSON. A child that does not answer in time is killed, and the file it was at is Unreadable: with the code
`farm.limits` if the file needs too much, with `farm.overloaded` if another would have fared no better. It also ends
after a number of files, so that whatever the library might leak stays small.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from farm import child
from farm.errors import BadInput, Fault
from farm.job import Cause
from provenance import report
from provenance.certificates import check_list
from provenance.chain import Certificate
from provenance.report import Ancestor, Report
from provenance.revoking import NONE_REVOKED, revoke

FILES_PER_CHILD = 1000
MAX_ANSWER = 16 << 20
LIFE_S = 3600  # of processor time, for all files of one child
SECRET = ("FARM_", "AWS_", "PG")  # a hostile file finds no passphrase and no login in its child
LIMITS, OVERLOADED = "farm.limits", "farm.overloaded"


class LimitedVerifier:
    """`verify` may be called from several threads; files go through the child one by one."""

    def __init__(
        self,
        trust: str,
        *,
        seconds: float = 20.0,
        memory_mb: int = child.MEMORY_MB,
        fit: frozenset[str] = report.FIT_PARENT,
    ) -> None:
        self.trust, self.seconds, self.memory_mb, self.fit = check_list(trust), seconds, memory_mb, fit
        self._lock = threading.Lock()
        self._child: tuple[subprocess.Popen[bytes], socket.socket] | None = None
        self._served = 0

    def verify(self, data: bytes, mime: str | None = None) -> Report:
        return self._serve(data, mime)[0]

    def as_parent(
        self, data: bytes, mime: str, title: str, revoked: Mapping[str, float] = NONE_REVOKED
    ) -> tuple[Report, bytes]:
        """The report, and the file as a finished ingredient: its credentials alone, and of limited size, because who
        signs an edit of it parses them without limits."""
        said, made = self._serve(data, mime, title)
        found = revoke(said, revoked)
        return found, made if found.verdict in report.FIT_PARENT else b""

    def examine(self, data: bytes, mime: str, revoked: Mapping[str, float] = NONE_REVOKED) -> None:
        """What is refused here is what the signer would refuse as the parent of an edit."""
        found, _ = self.as_parent(data, mime, "upload", revoked)
        if OVERLOADED in found.codes:
            raise Fault(Cause.OVERLOADED, f"the picture was not verified: {found.sentence}")
        if found.verdict not in self.fit:
            fix = "send the file as it was signed, or a copy without content credentials"
            raise BadInput(f"the picture is {found.verdict}. {found.sentence}", field="body", fix=fix)

    def _serve(self, data: bytes, mime: str | None, title: str | None = None) -> tuple[Report, bytes]:
        with self._lock:
            try:
                answer = self._ask(data, mime, title)
                if answer["spent"]:
                    self._stop()
                return _from_json(answer["report"]), base64.b64decode(answer["ingredient"])
            except (OSError, ValueError) as error:
                code = self._why(error)
                self._stop()
                return report.failed(report.UNREADABLE, code, mime), b""

    def close(self) -> None:
        with self._lock:
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _why(self, error: Exception) -> str:
        if self._child is None or isinstance(error, TimeoutError):  # it could not start, or got no processor time
            return OVERLOADED
        process, _ = self._child
        with contextlib.suppress(subprocess.TimeoutExpired):  # alive, and says too much
            process.wait(1.0)
        return OVERLOADED if process.returncode in child.ENDED_BY_OTHERS else LIMITS

    def _ask(self, data: bytes, mime: str | None, title: str | None) -> Any:
        if self._served >= FILES_PER_CHILD or (self._child and self._child[0].poll() is not None):
            self._stop()
        wire = self._wire()
        self._served += 1
        wire.sendall(json.dumps({"length": len(data), "mime": mime, "title": title}).encode() + b"\n")
        wire.sendall(data)
        answer = b""
        while not answer.endswith(b"\n"):
            piece = wire.recv(1 << 16)
            if not piece or len(answer) > MAX_ANSWER:
                raise ConnectionError("the child ended, or says too much")
            answer += piece
        return json.loads(answer)

    def _wire(self) -> socket.socket:
        if self._child is None:
            ours, theirs = socket.socketpair()
            command = [sys.executable, "-m", "provenance.limited", str(self.memory_mb), str(self.seconds)]
            quiet = subprocess.DEVNULL  # whatever the library prints must not look like an answer
            bare = {name: said for name, said in os.environ.items() if not name.startswith(SECRET)}
            try:
                with theirs:
                    made = subprocess.Popen(command, env=bare, stdin=theirs.fileno(), stdout=quiet, stderr=quiet)
                    self._child = made, ours
            except OSError:
                ours.close()
                raise
            ours.settimeout(self.seconds * child.PATIENCE)
            ours.sendall(json.dumps(self.trust).encode() + b"\n")
        return self._child[1]

    def _stop(self) -> None:
        running, self._child, self._served = self._child, None, 0
        if running is not None:
            process, wire = running
            wire.close()
            process.kill()
            process.wait()


def _from_json(values: Any) -> Report:
    ancestors = tuple(Ancestor(**_with_tuples(one)) for one in values["ancestors"])
    links = tuple(Certificate(**one) for one in values["chain"])
    return Report(**_with_tuples(values) | {"ancestors": ancestors, "chain": links})


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _allow(seconds: float) -> None:
    """So much more processor time, for the next file."""
    resource.setrlimit(resource.RLIMIT_CPU, (min(math.ceil(_used() + seconds), LIFE_S), LIFE_S + 1))


def _used() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """The child, which has its end of the wire as standard input."""
    child.limit(memory_mb=int(sys.argv[1]), seconds=LIFE_S)
    from provenance.signing import as_parent
    from provenance.verify import verify_bytes

    with socket.socket(fileno=0) as wire, wire.makefile("rb") as requests:
        trust = json.loads(requests.readline())
        for head in requests:
            request = json.loads(head)
            seconds = float(sys.argv[2])
            _allow(seconds)
            data, mime, title = requests.read(request["length"]), request["mime"], request["title"]
            alone = title is None
            found, made = (verify_bytes(data, mime, trust), b"") if alone else as_parent(data, mime, title, trust)
            spent = _used() + seconds > LIFE_S  # the next file would not get all that it may take
            answer = {"report": asdict(found), "ingredient": base64.b64encode(made).decode(), "spent": spent}
            wire.sendall(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
