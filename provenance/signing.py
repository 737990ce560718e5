"""The one place where a manifest and bytes become a signed file: sign, read back, verify, and only then answer."""

from __future__ import annotations

import hashlib
import io
import logging
import threading
import time
from dataclasses import dataclass

from c2pa import Builder, C2paError, C2paSigningAlg, Signer

from farm.errors import FarmError, Fault
from farm.job import Cause
from farm.ports import Signed
from provenance import report
from provenance.container import is_heavy, manifest_store
from provenance.keys import Keys
from provenance.manifest import PARENT, Manifest
from provenance.report import TRUSTED, Report
from provenance.verify import context, verify_bytes

log = logging.getLogger("farm.signer")
PROBE = b"farm: does this key sign?"  # no claim: those begin as an array in CBOR
FRESH_S = 30.0
ALGORITHMS = {"es256": C2paSigningAlg.ES256, "ed25519": C2paSigningAlg.ED25519}


@dataclass(frozen=True, slots=True)
class Parent:
    data: bytes
    mime: str
    title: str
    # Of a stranger's file, finished in a limited child: the signer opens no picture of theirs. It does parse their
    # manifests, which come with the ingredient, so the child lets only small ones through.
    ingredient: bytes = b""


def as_parent(data: bytes, mime: str, title: str, trust: str) -> tuple[Report, bytes]:
    """What a stranger's file is found to be and, if an edit may start from it, the file as a finished ingredient."""
    heavy = report.failed(report.UNREADABLE, "farm.manifest.heavy", mime), b""
    if is_heavy(manifest_store(data) or b""):
        return heavy
    found = verify_bytes(data, mime, trust)
    if found.verdict not in report.FIT_PARENT:
        return found, b""
    made = _ingredient(data, mime, title, trust)
    # Looked at again: this is what the signer gets, whatever the library found in the file that we did not.
    return heavy if is_heavy(made) else (found, made)


def _ingredient(data: bytes, mime: str, title: str, trust: str) -> bytes:
    archive = io.BytesIO()
    with Builder({}, context=context(trust)) as builder:
        builder.add_ingredient(_described(title), mime, io.BytesIO(data))
        builder.write_ingredient_archive(PARENT, archive)
    return archive.getvalue()


def _described(title: str) -> dict[str, str]:
    return {"title": title, "relationship": "parentOf", "label": PARENT}


@dataclass(frozen=True, slots=True)
class Stamps:
    """Where the library asks for a time stamp, and whether a signature without one counts."""

    url: str
    required: bool = True


class Signing:
    """Holds the library's signer, which calls back for each signature: the key itself never enters the library."""

    def __init__(self, keys: Keys, stamps: Stamps | None = None) -> None:
        self.keys, self.stamps = keys, stamps
        self._context = context(keys.trust)
        self._signed_at = -FRESH_S
        self._met = threading.local()  # what went wrong in the callback of this thread's signature
        self._bare = Signer.from_callback(self._sign, ALGORITHMS[keys.algorithm], keys.chain)
        self._signer = self._bare
        if stamps is not None:
            self._signer = Signer.from_callback(self._sign, ALGORITHMS[keys.algorithm], keys.chain, stamps.url)

    def _sign(self, data: bytes) -> bytes:
        """The library tells of a callback that fails only that the signature is not valid."""
        try:
            made = self.keys.sign(data)
        except FarmError as error:
            self._signed_at = -FRESH_S
            self._met.error = error
            raise
        self._signed_at = time.monotonic()
        return made

    def check(self) -> None:
        """Whether the key signs, unless it did so a moment ago: one in a token may be out of reach."""
        if time.monotonic() - self._signed_at < FRESH_S:
            return
        try:
            self._sign(PROBE)
        except FarmError:
            self._blame_key()

    def sign(self, manifest: Manifest, data: bytes, mime: str, parent: Parent | None = None) -> Signed:
        try:
            signed, store = self._build(self._signer, manifest, data, mime, parent)
        except C2paError as error:
            self._blame_key()
            signed, store = self._build_bare(error, manifest, data, mime, parent)
        return self._read_back(signed, mime, hashlib.sha256(store).hexdigest())

    def _blame_key(self) -> None:
        met, self._met.error = getattr(self._met, "error", None), None
        if met is not None:
            raise Fault(Cause.SIGNER_FAILED, f"the key does not sign: {met}") from met

    def _build(
        self, signer: Signer, manifest: Manifest, data: bytes, mime: str, parent: Parent | None
    ) -> tuple[bytes, bytes]:
        out = io.BytesIO()
        with Builder(manifest, context=self._context) as builder:
            if parent is not None and parent.ingredient:
                builder.add_ingredient_from_archive(io.BytesIO(parent.ingredient))
            elif parent is not None:
                builder.add_ingredient(_described(parent.title), parent.mime, io.BytesIO(parent.data))
            store = builder.sign(signer, mime, io.BytesIO(data), out)
        return out.getvalue(), store

    def _build_bare(
        self, met: C2paError, manifest: Manifest, data: bytes, mime: str, parent: Parent | None
    ) -> tuple[bytes, bytes]:
        """The library does not say whether it failed over the time stamp: it did if it succeeds without one."""
        try:
            if self.stamps is None:
                raise met
            made = self._build(self._bare, manifest, data, mime, parent)
        except C2paError as error:
            raise Fault(Cause.UNVERIFIED, f"the file could not be signed: {error}") from error
        if self.stamps.required:
            raise Fault(Cause.TIMESTAMP_DOWN, f"no time stamp for the signature: {met}") from met
        log.error("signed without a time stamp: %s", met)
        return made

    def _read_back(self, data: bytes, mime: str, manifest_sha256: str) -> Signed:
        found = verify_bytes(data, mime, self.keys.trust, self.keys.revoked)
        if found.verdict != TRUSTED or found.manifest_sha256 != manifest_sha256 or found.label is None:
            raise Fault(Cause.UNVERIFIED, f"read back as {found.verdict}: {found.sentence}")
        if self.stamps is not None and self.stamps.required and found.stamped_at is None:
            fix = "is the root of its authority on the trust list (`farm keys trust --add`)?"
            raise Fault(Cause.TIMESTAMP_DOWN, f"the time stamp is of nobody we trust: {fix}")
        return Signed(data, mime, manifest_sha256, found.label)
