"""What people did, in a chain that shows whether it was changed: each sealed row carries the hash of the one before it.

A row is written inside the transaction of the deed itself and sealed after its commit, one sealer at a time, as events
are. The chain proves that nothing within it was changed, removed or moved; the signed heads prove that its end was not
cut off. They lie in the same database, so the signer keeps the last one elsewhere as well.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, RowMapping, func, insert, select, update

from farm import sealing
from farm.db import AUDIT_LOCK, reading, transact, upsert
from farm.errors import FarmError
from farm.ports import Signer
from farm.sealing import UNSEALED
from farm.tables import AUDIT, AUDIT_HEAD

SEAL_AT_ONCE = 1000
GENESIS = "0" * 64
SIGNED = ("seq", "project_id", "actor", "action", "subject", "data", "created_at", "previous")


def append(
    connection: Connection, project_id: str, actor: str, action: str, subject: str, now: float, **data: Any
) -> None:
    row = {
        "project_id": project_id,
        "actor": actor,
        "action": action,
        "subject": subject,
        "data": data,
        "created_at": now,
    }
    connection.execute(insert(AUDIT), [row])


def row_hash(row: dict[str, Any]) -> str:
    words = json.dumps({name: row[name] for name in SIGNED}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(words.encode()).hexdigest()


def seal(engine: Engine) -> int:
    """Put what is committed into the chain; returns how many rows."""
    return sealing.seal(engine, AUDIT, AUDIT_LOCK, _seal_some, SEAL_AT_ONCE)


def _seal_some(connection: Connection, at_once: int) -> int:
    seq, previous = _head(connection)
    fresh = connection.execute(select(AUDIT).where(UNSEALED).order_by(AUDIT.c.id).limit(at_once)).mappings().all()
    for row in fresh:
        seq += 1
        sealed = dict(row) | {"seq": seq, "previous": previous}
        sealed["sha256"] = row_hash(sealed)
        values = {name: sealed[name] for name in ("seq", "previous", "sha256")}
        connection.execute(update(AUDIT).where(AUDIT.c.id == row["id"]).values(values))
        previous = sealed["sha256"]
    return len(fresh)


def _head(connection: Connection) -> tuple[int, str]:
    query = select(AUDIT.c.seq, AUDIT.c.sha256).where(AUDIT.c.seq.is_not(None)).order_by(AUDIT.c.seq.desc()).limit(1)
    row = connection.execute(query).first()
    return (int(row[0]), str(row[1])) if row else (0, GENESIS)


class Head(NamedTuple):
    """A row that the signer answers for, and with it for all before."""

    seq: int
    sha256: str
    signature: str


@dataclass(frozen=True, slots=True)
class Flaw:
    row: int
    what: str

    def __str__(self) -> str:
        return f"row {self.row}: {self.what}"


@dataclass(frozen=True, slots=True)
class ChainReport:
    rows: int
    unsealed: int  # written, but not yet in the chain
    heads: int
    signed_to: int  # the last row that a signed head answers for; 0: none
    wrong: tuple[Flaw, ...]


def verify_chain(
    connection: Connection, is_ours: Callable[[int, str, str], bool], kept: Head | None = None
) -> ChainReport:
    """Look at every sealed row and every signed head; `is_ours` checks the signature of one. `kept` is the last that
    was signed, as it is known from elsewhere: the chain must reach it."""
    heads = {row.seq: row for row in connection.execute(select(AUDIT_HEAD).order_by(AUDIT_HEAD.c.seq))}
    forged = [seq for seq, head in heads.items() if not is_ours(seq, head.sha256, head.signature)]
    wrong = [Flaw(seq, "the signature of its head was not made with the audit key") for seq in forged]
    rows = connection.execution_options(yield_per=1000).execute(
        select(AUDIT).where(AUDIT.c.seq.is_not(None)).order_by(AUDIT.c.seq)
    )
    count, last, previous = 0, 0, GENESIS
    left = {seq: str(head.sha256) for seq, head in heads.items()}
    reached = kept is None
    for row in rows.mappings():
        reached = reached or (kept is not None and kept[:2] == (row["seq"], row["sha256"]))
        wrong += _check(row, last + 1, previous, left.pop(row["seq"], None))
        count, last, previous = count + 1, row["seq"], row["sha256"]
    wrong += [Flaw(seq, "its head was signed, but the row is gone") for seq in left]
    wrong += _check_kept(kept, reached, is_ours)
    unsealed = connection.execute(select(func.count()).select_from(AUDIT).where(UNSEALED)).scalar_one()
    return ChainReport(count, unsealed, len(heads), max(heads, default=0), tuple(wrong))


def _check(row: RowMapping, expected: int, previous: str, signed: str | None) -> list[Flaw]:
    seq = row["seq"]
    checks = {
        Flaw(expected, "missing"): seq == expected,
        Flaw(seq, "does not follow the row before it"): row["previous"] == previous,
        Flaw(seq, "changed after it was sealed"): row_hash(dict(row)) == row["sha256"],
        Flaw(seq, "is not the row whose head was signed"): signed is None or signed == row["sha256"],
    }
    return [flaw for flaw, holds in checks.items() if not holds]


def _check_kept(kept: Head | None, reached: bool, is_ours: Callable[[int, str, str], bool]) -> list[Flaw]:
    if kept is None:
        return []
    if not is_ours(*kept):
        return [Flaw(kept.seq, "the last signed head, kept outside the database, was not made with the audit key")]
    cut = Flaw(kept.seq, "its head was the last one signed, but the log was cut before it or holds another row there")
    return [] if reached else [cut]


def sign_head(engine: Engine, signer: Signer, clock: Callable[[], float] = time.time) -> int | None:
    """Have the signer sign the chain's head, once for each head; returns its number, or None if it is not new."""
    with reading(engine) as connection:
        seq, sha256 = _head(connection)
        known = _is_signed(connection, seq)
    if seq == 0 or known:
        return None
    try:
        signature = signer.sign_audit_head(seq, sha256)
    except FarmError:
        with reading(engine) as connection:
            grown = _head(connection)[0] > seq
        if not grown:
            raise
        return sign_head(engine, signer, clock)  # another dispatcher may have had a later head signed
    row = {"seq": seq, "sha256": sha256, "signature": signature, "created_at": clock()}

    def keep(connection: Connection) -> None:
        if not _is_signed(connection, seq):  # where it is, SQLite's trigger refuses even to do nothing
            connection.execute(upsert(connection, AUDIT_HEAD).values(row).on_conflict_do_nothing())

    transact(engine, keep)
    return seq


def _is_signed(connection: Connection, seq: int) -> bool:
    return connection.execute(select(AUDIT_HEAD.c.seq).where(AUDIT_HEAD.c.seq == seq)).first() is not None


def read(engine: Engine, project_id: str | None = None, after_seq: int = 0, limit: int = 500) -> list[dict[str, Any]]:
    query = select(AUDIT).where(AUDIT.c.seq > after_seq).order_by(AUDIT.c.seq).limit(limit)
    if project_id is not None:
        query = query.where(AUDIT.c.project_id == project_id)
    with reading(engine) as connection:
        return [dict(row) for row in connection.execute(query).mappings()]
