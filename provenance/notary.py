"""Puts records, labels and signature together: what the signer does for each request, without the HTTP around it."""

from __future__ import annotations

import datetime as dt
import threading
from typing import Any

from sqlalchemy import Engine

from farm.audit import Head
from farm.config import Settings
from farm.errors import Fault
from farm.job import FORMATS, Cause
from farm.ports import Frame, Signed, Store
from provenance import heads, labels, manifest, records, report
from provenance.keyring import Keyring
from provenance.limited import OVERLOADED, LimitedVerifier
from provenance.records import Claim, ParentFile, Refused
from provenance.report import Report
from provenance.signing import Parent, Signing
from provenance.verify import verify_bytes

# What the parent of an edit may be found to be. The farm's own must be whole; a stranger's may be unknown, or bare.
FIT = {True: {report.TRUSTED}, False: report.FIT_PARENT}


class Notary:
    """One for the process; its methods may run in several threads."""

    def __init__(self, settings: Settings, engine: Engine, store: Store) -> None:
        self.home, self.engine, self.store = settings.home, engine, store
        self.told = {name.strip() for name in settings.tell_prompts.split(",")}
        self.left_out = report.BROKEN if settings.broken_inputs == "record" else frozenset[str]()
        self.keyring = Keyring(settings)
        self._lock = threading.Lock()
        self._verifier: LimitedVerifier | None = None

    @property
    def signing(self) -> Signing:
        return self.keyring.signing

    def sign(self, job_id: int, attempt: int, owner: str, frame: Frame) -> Signed:
        return self._sign(records.frame_claim(self.engine, job_id, attempt, owner, frame), frame)

    def sign_preview(self, job_id: int, attempt: int, owner: str, frame: Frame) -> Signed:
        """Of a picture that is still drawn."""
        return self._sign(records.preview_claim(self.engine, job_id, attempt, owner, frame), frame)

    def sign_blocked(self, job_id: int, attempt: int, frame: Frame) -> Signed:
        """Of a picture that is kept in quarantine."""
        return self._sign(records.blocked_claim(self.engine, job_id, attempt, frame), frame)

    def _sign(self, claim: Claim, frame: Frame) -> Signed:
        parent, source, broken = self._parent(claim.parent)
        signing = self.signing
        salt = signing.keys.prompt_salt(claim.verdict.job_id)
        edits, tells = claim.parent is not None, claim.job.project_id in self.told
        now = dt.datetime.now(dt.UTC)
        made = manifest.made(claim.job, claim.verdict, source, salt, now, edits=edits, tells=tells, broken=broken)
        data = labels.encode(frame, claim.job.format, source)
        return signing.sign(made, data, FORMATS[claim.job.format], parent)

    def approve(self, job_id: int, decision_id: int) -> Signed:
        """The held file with one more manifest: same pixels, not encoded again."""
        approval = records.approval(self.engine, job_id, decision_id)
        held, _ = self._fetch(approval.held)
        step = manifest.approved(approval.job, approval.verdict, approval.decision, dt.datetime.now(dt.UTC))
        return self.signing.sign(step, held.data, held.mime, held)

    def prompt_salt(self, job_id: int, project_id: str) -> str:
        """For the owner alone: with it and the prompt, anyone can recompute the commitment in the manifest."""
        records.job_of(self.engine, job_id, project_id)
        return self.signing.keys.prompt_salt(job_id).hex()

    def sign_audit_head(self, seq: int, sha256: str) -> str:
        """Of a chain that still holds the last one signed, and of no row before it: what was rewritten is not signed
        again."""
        with heads.alone(self.home):
            last = heads.read(self.home / "keys")
            records.require_audit_head(self.engine, seq, sha256, last)
            signature = self.signing.keys.sign_audit_head(seq, sha256)
            heads.write(self.home, Head(seq, sha256, signature))
            return signature

    def close(self) -> None:
        self.keyring.close()
        with self._lock:
            if self._verifier is not None:
                self._verifier.close()

    @property
    def _strangers(self) -> LimitedVerifier:
        """By whom we trust now."""
        trust = self.signing.keys.trust
        with self._lock:
            if self._verifier is None or self._verifier.trust != trust:
                if self._verifier is not None:
                    self._verifier.close()
                self._verifier = LimitedVerifier(trust)
            return self._verifier

    def _parent(self, file: ParentFile | None) -> tuple[Parent | None, str, dict[str, Any] | None]:
        """What is edited, the source type that follows from it, and what is wrong with it if that is only recorded."""
        if file is None:
            return None, manifest.source_type(None, edits=False), None
        parent, found = self._fetch(file)
        if found.verdict in FIT[file.ours]:
            return parent, manifest.source_type(found.source, edits=True), None
        broken = {"verdict": found.verdict, "codes": list(found.codes), "format": file.mime, "sha256": file.key}
        return None, manifest.source_type(None, edits=True), broken

    def _fetch(self, file: ParentFile) -> tuple[Parent, Report]:
        """The parent's signed bytes, never decoded pixels; refused if they would make their child suspect, unless it is
        a stranger's and the operator wants that recorded."""
        data = self.store.get(file.key)
        found, ingredient = self._examine(data, file)
        if found.verdict not in FIT[file.ours] and (file.ours or found.verdict not in self.left_out):
            detail = f"{file.title!r} is {found.verdict}: {found.sentence}"
            raise Refused(detail) if file.ours else Fault(Cause.BAD_INPUT, detail)
        return Parent(data, file.mime, file.title, ingredient), found

    def _examine(self, data: bytes, file: ParentFile) -> tuple[Report, bytes]:
        signing = self.signing
        if file.ours:
            return verify_bytes(data, file.mime, signing.keys.trust, signing.keys.revoked), b""
        found, ingredient = self._strangers.as_parent(data, file.mime, file.title, signing.keys.revoked)
        if OVERLOADED in found.codes:
            raise Fault(Cause.OVERLOADED, f"{file.title!r} could not be verified: {found.sentence}")
        return found, ingredient
