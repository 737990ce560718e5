"""The signer as the rest of the farm sees it: the port, over the signer's Unix socket.

One connection a request, so that a signer started again is never met through a connection to the old one.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from farm.errors import BadInput, Fault, NotFound
from farm.job import Cause
from farm.ports import Frame, Lease, Signed

LABEL_HEADER, MANIFEST_HEADER = "x-farm-label", "x-farm-manifest-sha256"
MAX_PATH = 107  # bytes a Unix socket's path may have
TIMEOUT = 120.0  # seconds; a large PNG takes a few to encode


def check_path(path: Path) -> None:
    if len(os.fsencode(path)) > MAX_PATH:
        raise BadInput(f"{path} is too long for a Unix socket", field="signer", fix="set FARM_SIGNER to a shorter path")


@dataclass(frozen=True, slots=True)
class SignerClient:
    """Trouble is a Fault: SIGNER_DOWN if it is not there, SIGNER_FAILED if it takes the request and fails over it,
    SIGN_REFUSED with its reason, or the cause it names."""

    path: Path
    timeout: float = TIMEOUT

    def sign(self, lease: Lease, frame: Frame) -> Signed:
        return self._sign("/sign", lease, frame)

    def sign_preview(self, lease: Lease, frame: Frame) -> Signed:
        return self._sign("/sign-preview", lease, frame)

    def sign_blocked(self, lease: Lease, frame: Frame) -> Signed:
        return self._sign("/sign-blocked", lease, frame)

    def approve(self, job_id: int, decision_id: int) -> Signed:
        """The held artifact of an approved job, with the signed step that records the approval."""
        return _signed(self._ask("POST", "/approve", {"job_id": job_id, "decision_id": decision_id}))

    def sign_audit_head(self, seq: int, sha256: str) -> str:
        return str(self._ask("POST", "/audit-head", {"seq": seq, "sha256": sha256}).json()["signature"])

    def prompt_salt(self, job_id: int, project_id: str) -> str:
        """In hexadecimal, for the job's owner alone. The caller must know that the asker is of this project."""
        return str(self._ask("GET", "/salt", {"job_id": job_id, "project_id": project_id}).json()["salt"])

    def health(self) -> dict[str, Any]:
        return dict(self._ask("GET", "/healthz", {}).json())

    def _sign(self, route: str, lease: Lease, frame: Frame) -> Signed:
        asked = {"job_id": lease.job_id, "attempt": lease.attempt, "owner": lease.owner}
        asked |= {"width": frame.width, "height": frame.height}
        return _signed(self._ask("POST", route, asked, frame.pixels))

    def _ask(self, method: str, route: str, asked: dict[str, Any], body: bytes | None = None) -> _Answer:
        connection = _UnixConnection(self.path, self.timeout)
        met = Cause.SIGNER_DOWN
        try:
            connection.connect()
            met = Cause.SIGNER_FAILED
            connection.request(method, f"{route}?{urlencode(asked)}", body)
            response = connection.getresponse()
            answer = _Answer(response.status, dict(response.headers), response.read())
        except (OSError, http.client.HTTPException) as error:
            raise Fault(met, f"the signer at {self.path} does not answer: {error}") from error
        finally:
            connection.close()
        if answer.status == http.client.OK:
            return answer
        raise _trouble(route, answer)


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: dict[str, str]
    content: bytes

    def json(self) -> Any:
        return json.loads(self.content)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("signer", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)  # closed with the connection
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


def _trouble(route: str, answer: _Answer) -> Exception:
    told = answer.headers.get("content-type") == "application/problem+json"
    problem = answer.json() if told else {"detail": f"the signer failed with status {answer.status}"}
    if route == "/salt" and answer.status == http.client.NOT_FOUND:
        return NotFound(problem["detail"])
    # A refusal is about the job; a signer that fails is an outage, and nobody's fault (law 9).
    default = Cause.SIGNER_FAILED if answer.status >= http.client.INTERNAL_SERVER_ERROR else Cause.SIGN_REFUSED
    return Fault(Cause(problem.get("cause", default)), problem["detail"])


def _signed(answer: _Answer) -> Signed:
    headers = answer.headers
    return Signed(answer.content, headers["content-type"], headers[MANIFEST_HEADER], headers[LABEL_HEADER])
