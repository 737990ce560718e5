"""What lies in the store though nobody is shown it, held against the lists of what nobody may have: blocked frames in
quarantine, and what was sent for jobs that ended without a picture. Whatever the lists know of them leaves the store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine, exists, select

from farm import hash_lists, moves, rules
from farm.db import insert_many, reading, transact
from farm.errors import Conflict
from farm.job import State
from farm.leasing import VERDICT_KEY, known_verdicts, verdict_row
from farm.ports import Kept, Outcome, Stage, Verdict
from farm.rescan import Judge
from farm.tables import JOB, QUARANTINE, THERE, UPLOAD, VERDICT

PAGE = 1000
ENDED = (State.BLOCKED, State.FAILED, State.CANCELLED)


@dataclass(frozen=True, slots=True)
class Unseen:
    verdict_id: int  # the one that tells of it
    project_id: str
    batch_id: int
    job_id: int
    attempt: int
    kept: Kept


def find(engine: Engine, judge: Judge, stands: tuple[str, str], clock: Callable[[], float]) -> int:
    """Judge them by the lists alone, and write down what nobody may have; returns how many those are."""
    found, last = 0, 0
    while some := _page(engine, last):
        answers = zip(some, judge([one.kept for one in some]), strict=True)
        hits = [(one, said) for one, said in answers if isinstance(said, Verdict) and said.illegal]
        if hits:
            found += transact(engine, partial(_write, hits=hits, stands=stands, now=clock()))
        last = some[-1].verdict_id
    return found


def _write(connection: Connection, hits: Sequence[tuple[Unseen, Verdict]], stands: tuple[str, str], now: float) -> int:
    moves.lock(connection, (one.job_id for one, _ in hits))
    if rules.in_force(connection) != stands:
        raise Conflict("another policy was put in force meanwhile", fix="`farm policy rescan` goes on with that one")
    known = known_verdicts(connection, (one.job_id for one, _ in hits))
    rows = [(one, said, verdict_row(one, said, now)) for one, said in hits]
    fresh = {key: it for it in rows if (key := tuple(it[2][name] for name in VERDICT_KEY)) not in known}
    insert_many(connection, VERDICT, [row for *_, row in fresh.values()])
    hash_lists.report(connection, ((one, said) for one, said, _ in fresh.values()), now)
    return len(fresh)


def _page(engine: Engine, last: int) -> list[Unseen]:
    """The embedding is left out: what a concept thinks of them is of no consequence any more."""
    columns: list[Any] = [VERDICT.c[name] for name in ("id", "project_id", "job_id", "attempt")]
    columns += [VERDICT.c[name] for name in ("stage", "subject", "outcome", "reason", "encoder", "pdq")]
    kept = exists().where(QUARANTINE.c.verdict_id == VERDICT.c.id)
    sent = (VERDICT.c.stage == str(Stage.INPUT)) & UPLOAD.c.id.is_not(None) & THERE
    rows = VERDICT.join(JOB, JOB.c.id == VERDICT.c.job_id).outerjoin(UPLOAD, UPLOAD.c.id == JOB.c.upload_id)
    query = select(*columns, JOB.c.batch_id, UPLOAD.c.key.label("file")).select_from(rows)
    query = query.where(VERDICT.c.id > last, ~VERDICT.c.illegal, JOB.c.state.in_(ENDED), kept | sent)
    with reading(engine) as connection:
        found = connection.execute(query.order_by(VERDICT.c.id).limit(PAGE)).mappings().all()
    return [_unseen(row) for row in found]


def _unseen(row: Any) -> Unseen:
    said = {name: row[name] for name in ("subject", "reason", "encoder", "pdq")}
    file = row["file"] or "" if row["stage"] == Stage.INPUT else ""
    kept = Kept(stage=Stage(row["stage"]), outcome=Outcome(row["outcome"]), file_sha256=file, **said)
    whose = {name: row[name] for name in ("project_id", "batch_id", "job_id", "attempt")}
    return Unseen(row["id"], kept=kept, **whose)
