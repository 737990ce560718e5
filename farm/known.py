"""What the farm knows of a file that someone holds, by its bytes alone.

The state of its job, and nothing that tells whose it is: who has the file may know that it was not to leave the farm.
"""

from __future__ import annotations

from sqlalchemy import Engine, select

from farm.db import reading
from farm.tables import ARTIFACT, JOB, QUARANTINE

REPLACED = "replaced"  # the job has another file by now: the one with the step of its approval, say
KEPT = "blocked, kept for an appeal"  # in quarantine, from which somebody opened it


def state_of(engine: Engine, sha256: str) -> str | None:
    """None if the farm never signed such a file."""
    query = (
        select(JOB.c.state, JOB.c.artifact_id, ARTIFACT.c.id)
        .join(ARTIFACT, ARTIFACT.c.job_id == JOB.c.id)
        .where(ARTIFACT.c.key == sha256)
    )
    kept = select(QUARANTINE.c.id).where(QUARANTINE.c.signed_sha256 == sha256)
    with reading(engine) as connection:
        found = connection.execute(query).first()
        if found is None:
            return None if connection.execute(kept).first() is None else KEPT
    state, current, id_ = found
    return str(state) if current == id_ else REPLACED
