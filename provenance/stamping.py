"""Where a signature gets its time stamp: a small responder on loopback, which the C2PA library asks while it signs. It
answers with the development authority's own stamp, or asks an outside authority, with patience of its own."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
from cryptography.hazmat import asn1

from farm.errors import FarmError, Fault
from farm.job import Cause
from provenance import timestamps

LOOPBACK = "127.0.0.1"
QUERY, REPLY = "application/timestamp-query", "application/timestamp-reply"
MAX_QUERY, MAX_REPLY = 4096, 1 << 16
PATIENCE_S = 4.0  # less than whoever asks whether the signer is well has for it
PAUSE_S = 5.0  # an authority that was down is asked again after that
KEPT = 4  # answers served at once: the newest, and those before it
log = logging.getLogger("farm.signer")


class Outside:
    """An authority elsewhere. While it is down it is asked now and then, not for every signature."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.trouble: Fault | None = None
        self._asked_again_at = 0.0
        self._client = httpx.Client(timeout=PATIENCE_S)

    def answer(self, query: bytes) -> bytes:
        if self.trouble is not None and time.monotonic() < self._asked_again_at:
            raise self.trouble
        try:
            reply = self._client.post(self.url, content=query, headers={"content-type": QUERY}).raise_for_status()
        except httpx.HTTPError as error:
            self._asked_again_at = time.monotonic() + PAUSE_S
            if self.trouble is None:
                log.warning("no time stamps from %s: %s", self.url, error)
            self.trouble = Fault(Cause.TIMESTAMP_DOWN, f"{self.url} gives no time stamps: {error}")
            raise self.trouble from error
        if self.trouble is not None:
            log.warning("%s gives time stamps again", self.url)
        self.trouble = None
        return reply.content[:MAX_REPLY]

    def close(self) -> None:
        self._client.close()

    def check(self) -> None:
        """If it was down, whether it still is."""
        if self.trouble is not None:
            self.answer(_question())


Answer = Callable[[bytes], bytes]


class Responder:
    """Serves answers until it is closed, each at an address of its own, to whoever knows that."""

    def __init__(self) -> None:
        _around_proxies()
        self._answers: dict[str, Answer] = {}
        self._server = ThreadingHTTPServer((LOOPBACK, 0), _handler(self._answers))
        self._server.daemon_threads = True
        serve = self._server.serve_forever
        threading.Thread(target=serve, args=(0.1,), name="time stamps", daemon=True).start()

    def serve(self, answer: Answer) -> str:
        """Its address. Those before it go on being served for a while: signatures are under way that will ask there."""
        path = f"/{secrets.token_urlsafe(16)}"
        self._answers[path] = answer
        for old in list(self._answers)[:-KEPT]:
            del self._answers[old]
        return f"http://{LOOPBACK}:{self._server.server_address[1]}{path}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(answers: Mapping[str, Answer]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # an answer in one piece: in two it would wait for the acknowledgement of the first
        timeout = 60.0

        def do_POST(self) -> None:
            size = int(self.headers.get("content-length") or 0)
            answer = answers.get(self.path)
            if answer is None or not 0 < size <= MAX_QUERY:
                self.close_connection = True
                self._send(404, b"")
                return
            query = self.rfile.read(size)
            try:
                self._send(200, answer(query))
            except FarmError as error:
                self._send(error.status, str(error).encode())

        def _send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", REPLY)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Who asks is our own library."""

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):
                super().handle()

    return Handler


def _around_proxies() -> None:
    """The library would ask this machine's own responder through a proxy that the environment names."""
    for name in ("no_proxy", "NO_PROXY"):
        known = [one for one in os.environ.get(name, "").split(",") if one]
        os.environ[name] = ",".join([*known, *({LOOPBACK} - set(known))])


def _question() -> bytes:
    digest = hashlib.sha256(os.urandom(32)).digest()
    imprint = timestamps.Imprint(algorithm=timestamps.Algorithm(oid=timestamps.SHA256), digest=digest)
    nonce = secrets.randbits(63)
    return asn1.encode_der(timestamps.Request(version=1, imprint=imprint, policy=None, nonce=nonce, certificates=True))
