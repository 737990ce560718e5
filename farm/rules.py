"""What the gate judges by: the policy in force, one in shadow, and the hash lists that they name.

A person puts a policy in force, on the record; every dispatcher hears of it within about a second. Until then the gate
may still judge by the one before, so publication asks what is in force, in its own transaction, and holds that row
still: once an activation is committed, nothing is published on another policy's word.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Row, delete, inspect, make_url, select

from farm import audit
from farm.db import connect, reading, transact, upsert
from farm.errors import BadInput, NotFound
from farm.ports import Gate, HashList, Rules, held
from farm.tables import HASH_LIST, IN_FORCE, POLICY

log = logging.getLogger("farm.rules")
ACTIVE, SHADOW = "active", "shadow"
HEARD_S = 2.0  # by then every dispatcher judges by what was put in force
SHORTEST = 6  # letters of a hash that may stand for it
ROLE = select(IN_FORCE, POLICY.c.name, POLICY.c.document).join(POLICY, POLICY.c.hash == IN_FORCE.c.policy)
HELD = select(IN_FORCE.c.policy, IN_FORCE.c.lists).where(IN_FORCE.c.role == ACTIVE).with_for_update(read=True)


@dataclass(frozen=True, slots=True)
class Standing:
    """One policy, as it was put in force or in shadow."""

    role: str
    policy: str
    name: str
    document: str = field(repr=False)
    lists: str
    version: int
    person: str
    created_at: float


def hash_of(document: str) -> str:
    return hashlib.sha256(document.encode()).hexdigest()


def list_names(document: str) -> list[str]:
    return [str(one["name"]) for one in json.loads(document).get("hash_lists") or ()]


def standing(connection: Connection) -> dict[str, Standing]:
    """By role; empty in a farm whose dispatcher never ran."""
    rows = connection.execute(ROLE).mappings()
    return {row["role"]: Standing(**{name: row[name] for name in Standing.__dataclass_fields__}) for row in rows}


def look(url: str) -> dict[str, Standing]:
    """The same, whether the farm runs or not: one that was never started has nothing in force."""
    engine = connect(url, read_only=True)
    try:
        if engine.dialect.name == "sqlite" and not Path(make_url(url).database or "").exists():
            return {}
        with reading(engine) as connection:
            return standing(connection) if inspect(connection).has_table(IN_FORCE.name) else {}
    finally:
        engine.dispose()


def in_force(connection: Connection) -> tuple[str, str] | None:
    """The hash of the policy, and what its lists hold. Nobody changes it until the caller's transaction ends."""
    row = connection.execute(HELD).first()
    return None if row is None else (row.policy, row.lists)


def read(connection: Connection, stands: Mapping[str, Standing]) -> Rules:
    return rules_of(connection, stands[ACTIVE].document, stands[SHADOW].document if SHADOW in stands else "")


def rules_of(connection: Connection, document: str, shadow: str = "") -> Rules:
    """With the lists that they name, as far as these were imported."""
    named = {name for one in (document, shadow) if one for name in list_names(one)}
    columns = [HASH_LIST.c[name] for name in ("name", "kind", "digests")]
    query = select(*columns).where(HASH_LIST.c.name.in_(sorted(named))).order_by(HASH_LIST.c.name)
    rows = connection.execute(query) if named else ()
    return Rules(document, shadow, tuple(HashList(row.name, row.kind, bytes(row.digests)) for row in rows))


def put(
    connection: Connection, role: str, document: str, person: str, project_id: str, now: float, *, first: bool = False
) -> bool:
    """In force (or in shadow) from this transaction's commit on; with `first` only where none is yet. False: it is
    already, or another one is. `project_id` is whose audit rows tell of it; it counts for the whole farm."""
    _check(person)
    before = _locked(connection).get(role)
    row = {"hash": hash_of(document), "name": json.loads(document)["name"], "document": document}
    row |= {"person": person, "created_at": now}
    if before is not None and (first or before.policy == row["hash"]):
        return False
    if connection.execute(select(POLICY.c.hash).where(POLICY.c.hash == row["hash"])).first() is None:
        connection.execute(upsert(connection, POLICY).values(row).on_conflict_do_nothing())
    version = 1 if before is None else before.version + 1
    said = {"policy": row["hash"], "lists": _held(connection, document), "version": version}
    said |= {"person": person, "created_at": now}
    stands = upsert(connection, IN_FORCE).values(role=role, **said)
    if first:  # of two dispatchers that start at once, one does it
        if not connection.execute(stands.on_conflict_do_nothing()).rowcount:
            return False
    else:
        connection.execute(stands.on_conflict_do_update(index_elements=["role"], set_=said))
    told = {"name": row["name"], "before": before.policy if before else None}
    audit.append(connection, project_id, person, f"policy {role}", f"policy {row['hash']}", now, **told)
    return True


def _check(person: str) -> None:
    if not person.strip() or "\0" in person:
        raise BadInput("who answers for it?", field="by", fix="give a name")


def end_shadow(connection: Connection, person: str, project_id: str, now: float) -> bool:
    _check(person)
    before = _locked(connection).get(SHADOW)
    if before is None:
        return False
    connection.execute(delete(IN_FORCE).where(IN_FORCE.c.role == SHADOW))
    audit.append(connection, project_id, person, "policy shadow", "policy none", now, before=before.policy)
    return True


def lists_changed(connection: Connection, person: str, now: float) -> bool:
    """Another version of the rules, where a list that a policy in force or in shadow names was changed just now."""
    changed = False
    for role, before in _locked(connection).items():
        document = connection.execute(select(POLICY.c.document).where(POLICY.c.hash == before.policy)).scalar_one()
        now_held = _held(connection, document)
        if now_held != before.lists:
            said = {"lists": now_held, "version": before.version + 1, "person": person, "created_at": now}
            row = upsert(connection, IN_FORCE).values(role=role, policy=before.policy, **said)
            connection.execute(row.on_conflict_do_update(index_elements=["role"], set_=said))
            changed = True
    return changed


def find(connection: Connection, wanted: str) -> str:
    """The document of a policy that was in force or in shadow once, by its hash or the beginning of it."""
    query = select(POLICY.c.hash, POLICY.c.document).where(POLICY.c.hash.startswith(wanted, autoescape=True))
    found = connection.execute(query.limit(2)).all() if len(wanted) >= SHORTEST else []
    if len(found) > 1:
        raise BadInput(f"more than one policy begins with {wanted}", field="POLICY", fix="give more of the hash")
    if not found:
        fix = "`farm policy ls` lists those that were in force; or name a file"
        raise NotFound(f"there is no file and no policy {wanted!r}", field="POLICY", fix=fix)
    return str(found[0].document)


def ever(connection: Connection) -> list[dict[str, Any]]:
    """Every policy that was in force or in shadow, the newest first, and which it is now."""
    now = {row.policy: row.role for row in connection.execute(select(IN_FORCE).order_by(IN_FORCE.c.role.desc()))}
    query = select(*(POLICY.c[name] for name in ("name", "hash", "person", "created_at")))
    rows = connection.execute(query.order_by(POLICY.c.created_at.desc(), POLICY.c.hash)).mappings()
    return [{"name": row["name"], "hash": row["hash"], "now": now.get(row["hash"], "")} | dict(row) for row in rows]


def _locked(connection: Connection) -> dict[str, Row[Any]]:
    """Always both, in the same order: two people wait for one another, and nobody for ever."""
    return {row.role: row for row in connection.execute(select(IN_FORCE).order_by(IN_FORCE.c.role).with_for_update())}


def _held(connection: Connection, document: str) -> str:
    """As Rules.held says it, without reading the lists."""
    names = list_names(document)
    rows = connection.execute(select(HASH_LIST.c.name, HASH_LIST.c.sha256).where(HASH_LIST.c.name.in_(names)))
    return held(names, {row.name: row.sha256 for row in rows})


@dataclass(slots=True)
class Herald:
    """Tells one gate of the rules, and puts the policy of the settings in force where there is none yet."""

    engine: Engine
    gate: Gate
    settings: str = ""  # the document of the policy that the settings name; empty: nobody asks for one
    project_id: str = ""
    clock: Callable[[], float] = time.time
    heard: bool = False
    seen: dict[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        """Before it has heard, nothing is judged."""
        return self.heard or not self.settings

    def announce(self) -> None:
        if not self.heard and self.settings:
            transact(self.engine, self._begin)
        with reading(self.engine) as connection:
            now = connection.execute(select(IN_FORCE.c.role, IN_FORCE.c.policy, IN_FORCE.c.version)).all()
            seen = {row.role: (row.policy, row.version) for row in now}
            stands = standing(connection) if seen != self.seen else {}
            rules = read(connection, stands) if ACTIVE in stands else None
        if rules is not None:
            self.gate.use(rules)
            log.info(
                "judging by %s", ", ".join(f"{one.name} {one.policy[:12]} ({one.role})" for one in stands.values())
            )
        if not self.heard and ACTIVE in stands and (words := differs(stands[ACTIVE], self.settings)):
            log.warning("%s", words)
        self.seen, self.heard = seen, True

    def _begin(self, connection: Connection) -> None:
        put(connection, ACTIVE, self.settings, "the settings", self.project_id, self.clock(), first=True)


def differs(stands: Standing, settings: str) -> str:
    """What to say where the settings name another policy than the one in force."""
    if not settings or hash_of(settings) == stands.policy:
        return ""
    meant = f"{json.loads(settings)['name']} {hash_of(settings)[:12]}"
    return (
        f"the settings name the policy {meant}, and in force is {stands.name} {stands.policy[:12]}, since"
        f" {stands.person} put it there: `farm policy activate FILE` changes that"
    )
