"""Blocked frames that a policy keeps for a time, for appeals: signed, then encrypted for the operator's key.

They are signed before they are encrypted, with the verdict that blocked them in their manifest: law 2 holds where they
rest, and whoever opens one needs no signer to show a signed picture. The farm itself cannot open them. What is on an
illegal list is never kept. Frames live in the dispatcher's memory alone until then: one that dies in between, or meets
no signer, keeps nothing, and says so.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, delete, exists, insert, select

from farm import audit
from farm.db import reading, transact
from farm.errors import Fault, NotFound
from farm.ports import Frame, Lease, Signer, Stage, Store, Verdict
from farm.tables import POLICY, QUARANTINE, VERDICT

log = logging.getLogger("farm.quarantine")
DAY_S = 86_400
EXPIRE_AT_ONCE = 500


def days_of(document: str, concept: str | None) -> int:
    """How long the policy keeps what this concept blocked; 0: not at all."""
    said: dict[str, Any] = {one["name"]: one.get("pixels") for one in json.loads(document).get("concepts") or ()}
    pixels = said.get(concept or "")
    return int(pixels["quarantine_days"]) if isinstance(pixels, dict) else 0


def about(job_id: int, frame_sha256: str) -> str:
    return f"job {job_id} frame {frame_sha256}"


@dataclass(frozen=True, slots=True)
class Quarantine:
    engine: Engine
    store: Store
    signer: Signer
    public_key: Path
    clock: Callable[[], float] = time.time

    def keep(self, lease: Lease, frame: Frame, verdict: Verdict, verdict_id: int) -> bool:
        """Of a frame whose block is committed; whatever goes wrong, its job is blocked all the same."""
        try:
            return self._keep(lease, frame, verdict, verdict_id)
        except Exception:
            log.exception("the blocked frame of job %d is not kept", lease.job_id)
            return False

    def _keep(self, lease: Lease, frame: Frame, verdict: Verdict, verdict_id: int) -> bool:
        from farm.sealed import read_public, seal

        with reading(self.engine) as connection:
            document = connection.execute(select(POLICY.c.document).where(POLICY.c.hash == verdict.policy)).scalar()
        days = days_of(document, verdict.concept) if document and not verdict.illegal else 0
        if not days:
            return False
        public = read_public(self.public_key)
        signed = self.signer.sign_blocked(lease, frame).data
        sealed = seal(public, signed, about(lease.job_id, verdict.subject))
        now, key = self.clock(), hashlib.sha256(sealed).hexdigest()
        row = {"project_id": lease.project_id, "job_id": lease.job_id, "verdict_id": verdict_id, "key": key}
        row |= {"signed_sha256": hashlib.sha256(signed).hexdigest()}
        row |= {"created_at": now, "expires_at": now + days * DAY_S}
        # The row first: without it nobody would ever delete the file.
        transact(self.engine, lambda connection: connection.execute(insert(QUARANTINE).values(row)))
        self.store.put(sealed)
        return True


def expire(engine: Engine, store: Store, now: float) -> int:
    """Delete those whose time is over; returns how many. The row last: whoever dies in between is followed, and a file
    that cannot be deleted is tried again and keeps no other."""
    over = select(QUARANTINE.c.id, QUARANTINE.c.key).where(QUARANTINE.c.expires_at <= now)
    with reading(engine) as connection:
        rows = connection.execute(over.order_by(QUARANTINE.c.expires_at).limit(EXPIRE_AT_ONCE)).all()
    done, faults = [], []
    for row in rows:
        try:
            store.delete(row.key)
            done.append(row.id)
        except Fault as fault:
            faults.append(f"{row.id}: {fault.detail}")
    if faults:
        log.warning("the time of %d is over, and their files are still there, as that of %s", len(faults), faults[0])
    if done:
        gone = delete(QUARANTINE).where(QUARANTINE.c.id.in_(done))
        transact(engine, lambda connection: connection.execute(gone))
    return len(done)


SHOWN: list[Any] = [QUARANTINE.c[name] for name in ("id", "project_id", "job_id", "created_at", "expires_at", "key")]
SHOWN += [VERDICT.c[name] for name in ("concept", "policy", "subject")]
MET = VERDICT.alias("met")  # on a list that came in since: it leaves the store
ILLEGAL = exists().where(MET.c.job_id == QUARANTINE.c.job_id, MET.c.illegal, MET.c.stage != str(Stage.PREVIEW))
KEPT = select(*SHOWN).join(VERDICT, VERDICT.c.id == QUARANTINE.c.verdict_id).where(~ILLEGAL).order_by(QUARANTINE.c.id)


def shown(connection: Connection) -> list[dict[str, Any]]:
    return [dict(row) for row in connection.execute(KEPT).mappings()]


def opened(connection: Connection, kept_id: int, person: str, reason: str, now: float) -> dict[str, Any]:
    """What is needed to open one; that it is opened, by whom and why, is on the record before anybody sees it."""
    kept = KEPT.where(QUARANTINE.c.id == kept_id, QUARANTINE.c.expires_at > now)
    row = connection.execute(kept).mappings().first()
    if row is None:
        fix = "`farm policy quarantine ls` lists them; is its time over?"
        raise NotFound(f"nothing in quarantine has the id {kept_id}", field="ID", fix=fix)
    told = {"job": row["job_id"], "reason": reason}
    audit.append(connection, row["project_id"], person, "open quarantine", f"quarantine {kept_id}", now, **told)
    return dict(row)
