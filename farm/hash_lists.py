"""Lists of known pictures by their hashes: imported, removed, and what was found by them.

The gate hears of a change with the rules (farm.rules). A list that a policy names and nobody imported lets nothing
through unseen. What an illegal one finds is reported to operators, and to nobody else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Protocol

from sqlalchemy import Connection, case, delete, func, select

from farm import audit, events, rules
from farm.db import upsert
from farm.digests import Read
from farm.errors import BadInput, Conflict, NotFound, nearest
from farm.ports import HashList, Stage, Verdict
from farm.tables import HASH_LIST, LIST_KINDS, VERDICT

THE_GATE = "the gate"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")  # as policies may write it
ABSENT = {"kind": "", "entries": 0, "sha256": "", "person": "", "updated_at": None}
FOUND = VERDICT.c.stage.in_([str(Stage.INPUT), str(Stage.FRAME)]) & VERDICT.c.margin.is_not(None)


def put(
    connection: Connection,
    name: str,
    kind: str,
    found: Read,
    *,
    person: str,
    project_id: str,
    now: float,
    replace: bool = False,
) -> HashList:
    """Take a list in, or the new version of one. `project_id` is whose audit rows tell of it; it counts for the whole
    farm."""
    _check(name, person)
    if kind not in LIST_KINDS:
        raise BadInput(f"unknown kind {kind!r}", field="kind", fix=nearest(kind, LIST_KINDS))
    if found.bad:
        raise BadInput(f"{len(found.bad)} of its lines are bad", field="FILE", fix="correct them: nothing was imported")
    if not found.entries:
        raise BadInput("the file has no digest", field="FILE", fix="`farm policy lists remove` ends a list")
    before = _locked(connection, name)
    if before is not None and not replace:
        says = f"there is a list {name!r} with {before.entries:,} digests, of {before.person}"
        raise Conflict(says, field="NAME", fix="--replace puts this one in its place")
    made = HashList(name, kind, found.digests)
    row = {"kind": kind, "digests": found.digests, "entries": found.entries, "sha256": made.sha256}
    row |= {"person": person, "updated_at": now}
    stored = upsert(connection, HASH_LIST).values(name=name, **row)
    connection.execute(stored.on_conflict_do_update(index_elements=["name"], set_=row))
    told = {"kind": kind, "entries": found.entries, "sha256": made.sha256, "before": before and before.sha256}
    audit.append(connection, project_id, person, "import list", f"list {name}", now, **told)
    rules.lists_changed(connection, person, now)
    return made


def _check(name: str, person: str) -> None:
    if not NAME.fullmatch(name):
        raise BadInput(f"{name!r} is no name of a list", field="NAME", fix="as in ncmec-2026: a-z, 0-9, . _ -")
    if not person.strip() or "\0" in person:
        raise BadInput("who answers for it?", field="by", fix="give a name")


def remove(connection: Connection, name: str, *, person: str, project_id: str, now: float) -> None:
    _check(name, person)
    before = _locked(connection, name)
    if before is None:
        known = list(connection.execute(select(HASH_LIST.c.name)).scalars())
        raise NotFound(f"no list {name!r}", field="NAME", fix=nearest(name, known) if known else "there are none")
    connection.execute(delete(HASH_LIST).where(HASH_LIST.c.name == name))
    audit.append(connection, project_id, person, "remove list", f"list {name}", now, before=before.sha256)
    rules.lists_changed(connection, person, now)


def _locked(connection: Connection, name: str) -> Any:
    columns = [HASH_LIST.c[name] for name in ("entries", "sha256", "person")]
    return connection.execute(select(*columns).where(HASH_LIST.c.name == name).with_for_update()).first()


def shown(connection: Connection) -> list[dict[str, Any]]:
    """Each list with who names it and how many pictures it found; those that a policy names and nobody imported too."""
    named: dict[str, list[str]] = {}
    for role, stands in rules.standing(connection).items():
        for name in rules.list_names(stands.document):
            named.setdefault(name, []).append(role)
    columns = [HASH_LIST.c[name] for name in ("name", *ABSENT)]
    there = {row["name"]: dict(row) for row in connection.execute(select(*columns)).mappings()}
    absent = {name: {"name": name} | ABSENT for name in named.keys() - there.keys()}
    counts = _hits(connection, [*there, *absent])
    return [
        row | {"named_by": sorted(named.get(name, []))} | counts.get(name, {"found": 0, "illegal": 0})
        for name, row in sorted((there | absent).items())
    ]


def _hits(connection: Connection, names: Iterable[str]) -> dict[str, dict[str, int]]:
    count, illegal = func.count(), func.sum(case((VERDICT.c.illegal, 1), else_=0))
    query = select(VERDICT.c.concept, count, illegal).where(FOUND, VERDICT.c.concept.in_(list(names)))
    rows = connection.execute(query.group_by(VERDICT.c.concept))
    return {name: {"found": found, "illegal": of_them} for name, found, of_them in rows}


def missing(connection: Connection) -> list[str]:
    """What the policy in force names and nobody imported: everything that it applies to goes to review."""
    return [row["name"] for row in shown(connection) if rules.ACTIVE in row["named_by"] and not row["entries"]]


class Of(Protocol):
    @property
    def project_id(self) -> str: ...
    @property
    def batch_id(self) -> int: ...
    @property
    def job_id(self) -> int: ...


def report(connection: Connection, pairs: Iterable[tuple[Of, Verdict]], now: float) -> None:
    """What is on an illegal list, to the operators alone: on the record, and as an event that only they hear."""
    for of, verdict in pairs:
        if verdict.illegal:
            said: dict[str, Any] = {"list": verdict.concept, "stage": str(verdict.stage), "sha256": verdict.subject}
            audit.append(connection, of.project_id, THE_GATE, "illegal", f"job {of.job_id}", now, **said)
            about = {"batch_id": of.batch_id, "job_id": of.job_id}
            events.append(connection, [events.event(of.project_id, events.ILLEGAL, now, **about, **said)])
