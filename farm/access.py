"""Projects, keys and uploads, and what each role may do.

Of a key only its hash is kept; the key itself is shown once, when it is made.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Engine, insert, select, update

from farm import audit
from farm.db import reading, transaction, upsert
from farm.errors import BadInput, Forbidden, NotFound, nearest
from farm.job import Cause, State
from farm.tables import API_KEY, PROJECT, ROLES, THERE, UPLOAD
from farm.waiting import public


@dataclass(frozen=True, slots=True)
class KeyView:
    id: str
    project_id: str
    name: str
    role: str
    created_at: float
    revoked_at: float | None = None


class Deed(StrEnum):
    RUN = "run batches"  # submit and steer them
    JUDGE = "judge pictures"  # see what is held or withdrawn and how close it came to a rule, and decide
    OPERATE = "see the pool"  # what runs where, for the whole farm; and drain it


# What each role may do beyond looking at what its project has published; API and pages ask this one table.
MAY = {
    "submitter": frozenset({Deed.RUN}),
    "reviewer": frozenset({Deed.JUDGE}),
    "operator": frozenset({Deed.RUN, Deed.JUDGE, Deed.OPERATE}),
}
CASES = frozenset({State.HELD, State.APPROVED, State.REJECTED, State.UNLISTED})  # for those who judge


def may(who: KeyView, deed: Deed) -> bool:
    return deed in MAY[who.role]


def require(who: KeyView, deed: Deed) -> None:
    if not may(who, deed):
        able = " or ".join(sorted(role for role, deeds in MAY.items() if deed in deeds))
        raise Forbidden(f"a {who.role} may not {deed}", fix=f"use the key of an {able}")


def may_see(who: KeyView, state: str) -> bool:
    """The picture of a job in this state."""
    return state == State.PUBLISHED or (state in CASES and may(who, Deed.JUDGE))


def faults_for(who: KeyView, faults: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a job has met, as it is told to this person."""
    if may(who, Deed.OPERATE):
        return list(faults)
    return [fault | {"detail": public(Cause(fault["cause"]), fault["detail"])} for fault in faults]


COLUMNS = [API_KEY.c[name] for name in KeyView.__dataclass_fields__]


class Access:
    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time) -> None:
        self.engine, self.clock = engine, clock

    @transaction
    def create_project(self, connection: Connection, project_id: str) -> None:
        """Creating it twice is creating it once."""
        row = {"id": project_id, "created_at": self.clock()}
        connection.execute(upsert(connection, PROJECT).values(row).on_conflict_do_nothing())

    @transaction
    def create_key(self, connection: Connection, project_id: str, name: str, role: str, by: str = "farm") -> str:
        """Returns the key; nobody can read it again."""
        if role not in ROLES:
            raise BadInput(f"unknown role {role!r}", field="role", fix=nearest(role, ROLES))
        if connection.execute(select(PROJECT.c.id).where(PROJECT.c.id == project_id)).first() is None:
            raise NotFound(f"no project {project_id!r}", field="project")
        now, id_, key = self.clock(), f"key_{secrets.token_hex(8)}", f"farm_{secrets.token_urlsafe(32)}"
        row = {"id": id_, "project_id": project_id, "name": name, "role": role, "sha256": _hash(key), "created_at": now}
        connection.execute(insert(API_KEY).values(row))
        audit.append(connection, project_id, by, "create key", id_, now, name=name, role=role)
        return key

    def find_key(self, key: str) -> KeyView | None:
        query = select(*COLUMNS).where(API_KEY.c.sha256 == _hash(key), API_KEY.c.revoked_at.is_(None))
        with reading(self.engine) as connection:
            row = connection.execute(query).mappings().first()
        return KeyView(**row) if row else None

    def keys(self, project_id: str) -> list[KeyView]:
        query = select(*COLUMNS).where(API_KEY.c.project_id == project_id).order_by(API_KEY.c.created_at, API_KEY.c.id)
        with reading(self.engine) as connection:
            return [KeyView(**row) for row in connection.execute(query).mappings()]

    @transaction
    def revoke_key(self, connection: Connection, project_id: str, key_id: str, by: str) -> None:
        now = self.clock()
        mine = update(API_KEY).where(API_KEY.c.project_id == project_id, API_KEY.c.id == key_id)
        if not connection.execute(mine.where(API_KEY.c.revoked_at.is_(None)).values(revoked_at=now)).rowcount:
            raise NotFound(f"no key {key_id} in use in this project")
        audit.append(connection, project_id, by, "revoke key", key_id, now)

    @transaction
    def add_upload(
        self,
        connection: Connection,
        project_id: str,
        name: str,
        key: str,
        mime: str,
        width: int,
        height: int,
        bytes_: int,
    ) -> str:
        id_ = f"up_{secrets.token_hex(16)}"
        row = {"id": id_, "project_id": project_id, "name": name, "key": key, "mime": mime, "width": width}
        row |= {"height": height, "bytes": bytes_, "created_at": self.clock()}
        connection.execute(insert(UPLOAD).values(row))
        return id_

    def upload(self, project_id: str, upload_id: str) -> dict[str, Any] | None:
        query = select(UPLOAD).where(UPLOAD.c.project_id == project_id, UPLOAD.c.id == upload_id, THERE)
        with reading(self.engine) as connection:
            row = connection.execute(query).mappings().first()
        return dict(row) if row else None


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
