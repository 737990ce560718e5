"""Verifies what strangers bring, against the farm's own trust list and list of revoked certificates as they are now."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from farm.errors import Fault, Unavailable
from farm.job import Cause
from provenance import keys, report
from provenance.limited import OVERLOADED, LimitedVerifier
from provenance.revoking import revoke
from provenance.verify import told


class VerifyingDesk:
    """May be asked from several threads: each has a child of its own, which serves again when it is done."""

    def __init__(self, home: Path, fit: frozenset[str] = report.FIT_PARENT) -> None:
        self.home, self.fit = home, fit
        self._lock = threading.Lock()
        self._idle: list[LimitedVerifier] = []

    def told(self, data: bytes) -> dict[str, Any]:
        trust, revoked = self._lists()
        with self._lent(trust) as verifier:
            found = verifier.verify(data)
        if OVERLOADED in found.codes:
            raise Fault(Cause.OVERLOADED, f"a file was not verified: {found.sentence}")
        return told(revoke(found, revoked), [("this farm", trust)])

    def examine(self, data: bytes, mime: str) -> None:
        """The port's examiner. Until there is a trust list nobody is on it, and nobody was revoked."""
        trust, revoked = self._lists() if (self.home / "trust" / "root.pem").exists() else ("", {})
        with self._lent(trust) as verifier:
            verifier.examine(data, mime, revoked)

    def _lists(self) -> tuple[str, dict[str, float]]:
        try:
            return keys.trust(self.home), keys.revoked(self.home)
        except Unavailable as error:  # where they should lie is for the farm's own log
            raise Fault(Cause.SIGNER_DOWN, str(error)) from error

    @contextmanager
    def _lent(self, trust: str) -> Iterator[LimitedVerifier]:
        verifier = self._take(trust)
        try:
            yield verifier
        finally:
            with self._lock:
                self._idle.append(verifier)

    def close(self) -> None:
        with self._lock:
            for verifier in self._idle:
                verifier.close()
            self._idle.clear()

    def _take(self, trust: str) -> LimitedVerifier:
        with self._lock:
            while self._idle:
                verifier = self._idle.pop()
                if verifier.trust == trust:
                    return verifier
                verifier.close()
        return LimitedVerifier(trust, fit=self.fit)
