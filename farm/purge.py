"""What is on a list of illegal pictures leaves the store: the upload it came as, the picture if one was made, and what
was kept of it in quarantine.

The verdict is committed first, so whoever dies in between is followed by another; deleting twice is deleting once. Of
an upload the row stays, without its file: what others drew from the same picture is judged on by its size and hash. A
job that still waits for it finds that it is not there any more.
"""

from __future__ import annotations

import time

from sqlalchemy import Engine, select, text, update

from farm.db import reading, transact
from farm.errors import Fault
from farm.ports import Stage, Store
from farm.tables import ARTIFACT, JOB, QUARANTINE, UPLOAD, VERDICT

OVERLAP_S = 600.0  # a verdict is seen only after its commit, which comes later than its time
ILLEGAL = text("verdict.illegal")  # spelled out, so that either database uses the index of these few

UPLOADED = (
    select(UPLOAD.c.key)
    .select_from(VERDICT.join(JOB, JOB.c.id == VERDICT.c.job_id).join(UPLOAD, UPLOAD.c.id == JOB.c.upload_id))
    .where(ILLEGAL, VERDICT.c.stage == str(Stage.INPUT))
)
MADE = (
    select(ARTIFACT.c.key)
    .select_from(VERDICT.join(ARTIFACT, ARTIFACT.c.job_id == VERDICT.c.job_id))
    .where(ILLEGAL, VERDICT.c.stage == str(Stage.FRAME), VERDICT.c.subject == ARTIFACT.c.frame_sha256)
)
KEPT = (
    select(QUARANTINE.c.key)
    .select_from(VERDICT.join(QUARANTINE, QUARANTINE.c.job_id == VERDICT.c.job_id))
    .where(ILLEGAL, VERDICT.c.stage != str(Stage.PREVIEW))
)


def purge(engine: Engine, store: Store, since: float) -> int:
    """Of the verdicts since then; returns how many files went."""
    with reading(engine) as connection:
        uploads = set(connection.execute(UPLOADED.where(VERDICT.c.created_at >= since)).scalars())
        made = set(connection.execute(MADE.where(VERDICT.c.created_at >= since)).scalars())
        made |= set(connection.execute(KEPT.where(VERDICT.c.created_at >= since)).scalars())
    there = [key for key in sorted(uploads | made) if store.has(key)]
    if uploads:
        gone = update(UPLOAD).where(UPLOAD.c.key.in_(uploads), UPLOAD.c.purged_at.is_(None))
        transact(engine, lambda connection: connection.execute(gone.values(purged_at=time.time())))
    faults = []
    for key in there:
        try:
            store.delete(key)
        except Fault as fault:  # one that cannot be deleted keeps no other
            faults.append(fault)
    if faults:
        raise faults[0]
    return len(there)
