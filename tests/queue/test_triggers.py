"""The triggers against what may happen to them: switched off, changed, joined by others, or gone round."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import IntegrityError

from farm import db
from tests.queue.conftest import Desk

GUTTED = "LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$"
HARM = {
    "postgresql": {
        "off": ["ALTER TABLE job DISABLE TRIGGER law1_published_update"],
        "for replicas alone": ["ALTER TABLE job ENABLE REPLICA TRIGGER law1_published_update"],
        "gutted": [f"CREATE OR REPLACE FUNCTION law1_published_update() RETURNS trigger {GUTTED}"],
        "open to temporary tables": ["ALTER FUNCTION law1_published_update() RESET search_path"],
        "too late": [
            "DROP TRIGGER law1_published_update ON job",
            "CREATE TRIGGER law1_published_update AFTER UPDATE ON job FOR EACH ROW"
            " EXECUTE FUNCTION law1_published_update()",
        ],
        "another function's": [
            "DROP TRIGGER law1_published_update ON job",
            "CREATE TRIGGER law1_published_update BEFORE UPDATE ON job FOR EACH ROW"
            " EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        ],
    },
    "sqlite": {
        "gutted": [
            "DROP TRIGGER law1_published_update",
            "CREATE TRIGGER law1_published_update BEFORE UPDATE ON job BEGIN SELECT 1; END",
        ],
    },
}


@pytest.mark.parametrize("harm", sorted(HARM["postgresql"]))
def test_a_trigger_that_was_changed_is_told_and_put_back(desk: Desk, harm: str) -> None:
    statements = HARM[desk.engine.dialect.name].get(harm)
    if statements is None:
        pytest.skip("SQLite has no such thing")
    for statement in statements:
        desk.sql(statement)
    try:
        assert db.required_triggers(desk.engine) - db.triggers(desk.engine) == {"law1_published_update"}
    finally:
        db.migrate(desk.engine)
    assert db.triggers(desk.engine) == db.required_triggers(desk.engine)


def identity(desk: Desk) -> object:
    """Of a trigger: another one after it was made anew."""
    if desk.engine.dialect.name == "sqlite":
        return desk.rows("PRAGMA schema_version")
    return desk.rows("SELECT oid FROM pg_trigger WHERE tgname = 'law1_held_update'")


def test_an_operators_own_trigger_is_left_alone_and_changes_nothing(desk: Desk) -> None:
    if desk.engine.dialect.name == "sqlite":
        desk.sql("CREATE TRIGGER mine AFTER INSERT ON event BEGIN SELECT 1; END")
    else:
        desk.sql(f"CREATE FUNCTION mine() RETURNS trigger {GUTTED}")
        desk.sql("CREATE TRIGGER mine AFTER INSERT ON event FOR EACH ROW EXECUTE FUNCTION mine()")
    try:
        before = identity(desk)
        db.migrate(desk.engine)
        assert identity(desk) == before
        assert db.triggers(desk.engine) == db.required_triggers(desk.engine)
    finally:
        desk.sql("DROP TRIGGER mine" if desk.engine.dialect.name == "sqlite" else "DROP FUNCTION mine CASCADE")


@pytest.mark.parametrize("name", ["id", "rowid", "_rowid_", "oid"])
def test_a_published_job_is_not_renumbered_by_any_name(desk: Desk, name: str) -> None:
    if desk.engine.dialect.name != "sqlite" and name != "id":
        pytest.skip("rowid is SQLite's own")
    desk.submit(count=1)
    (lease,) = desk.claim()
    desk.publish(lease)
    with pytest.raises(IntegrityError, match="law 1"):
        desk.sql(f"UPDATE job SET {name} = 1000")
    assert desk.sql("UPDATE job SET reason = 'what says nothing of the artifact may change'") == 1
