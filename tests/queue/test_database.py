"""The database itself: migrations, many processes, outages, and the plans of the hot queries."""

from __future__ import annotations

import functools
import os
import pickle
import re
import socket
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Connection, Select, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from farm import db
from farm.access import Access
from farm.errors import Fault
from farm.insights import job_page, waits
from farm.job import Cause
from farm.job_queue import JobQueue
from farm.leasing import CLAIM
from farm.migrations import triggers as law1
from farm.migrations.triggers import ARTIFACT_FACTS, AUDIT_FACTS
from farm.ports import Outcome, Stage
from farm.tables import ARTIFACT, AUDIT, METADATA
from tests.conftest import fresh_postgres
from tests.queue.conftest import Desk, verdict

# What came after the first tables.
NEWER_TABLES = ("acceptance", "drain", "gang", "hash_list", "in_force", "node", "policy", "progress", "quarantine")
ALSO_NEWER_TABLES = ("doubted", "shadow_verdict", "unfollowed")
NEWER_OF_VERDICT = ("pdq", "lists", "illegal", "drawn_with")
NEWER_INDEXES = ("job_batch", "job_project", "job_waits", "verdict_illegal", "verdict_said")
START = (
    "import sys; from farm.db import connect, migrate; engine = connect(sys.argv[1]); migrate(engine); engine.dispose()"
)


def test_writers_of_one_process_take_turns_and_readers_do_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = db.connect(f"sqlite:///{tmp_path}/farm.db")
    began, end = threading.Event(), threading.Event()

    def long(connection: Connection) -> None:
        connection.execute(text("CREATE TABLE t (a)"))
        began.set()
        assert end.wait(10)

    def write(connection: Connection) -> int:
        return connection.execute(text("INSERT INTO t VALUES (1)")).rowcount

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(db.transact, engine, long)
        assert began.wait(10)
        with db.reading(engine) as connection:
            assert connection.execute(text("SELECT count(*) FROM sqlite_master")).scalar() == 0
        monkeypatch.setattr(db, "BUSY_S", 0.05)
        with pytest.raises(db.DatabaseDown, match="another thread"):
            db.transact(engine, write)
        monkeypatch.undo()
        second = pool.submit(db.transact, engine, write)
        end.set()
        first.result(10)
        assert second.result(10) == 1
    engine.dispose()


def test_the_tables_and_the_migrated_schema_agree(desk: Desk) -> None:
    with db.reading(desk.engine) as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_the_triggers_know_every_column() -> None:
    assert set(ARTIFACT_FACTS) | {"verified_at"} == set(ARTIFACT.c.keys())
    assert set(AUDIT_FACTS) | {"seq", "previous", "sha256"} == set(AUDIT.c.keys())


def test_a_missing_trigger_is_put_back_on_the_next_start(desk: Desk) -> None:
    on = "" if desk.engine.dialect.name == "sqlite" else " ON job"
    desk.sql(f"DROP TRIGGER law1_published_update{on}")
    assert db.triggers(desk.engine) != db.required_triggers(desk.engine)
    db.migrate(desk.engine)
    assert db.triggers(desk.engine) == db.required_triggers(desk.engine)


def test_a_database_of_the_first_tables_is_brought_up_to_date_and_keeps_its_rows(desk: Desk) -> None:
    batch = desk.submit(count=2)
    (lease,) = desk.claim(limit=1)
    desk.queue.record([(lease, verdict("f" * 64, Outcome.REVIEW))])
    judged = desk.rows("SELECT * FROM verdict")
    with desk.engine.begin() as connection:
        law1.drop(connection, law1.standing(connection))
        for table in (*NEWER_TABLES, *ALSO_NEWER_TABLES):
            connection.execute(text(f"DROP TABLE {table}"))
        for index in NEWER_INDEXES:
            connection.execute(text(f"DROP INDEX {index}"))
        with Operations(MigrationContext.configure(connection)).batch_alter_table("verdict") as judged_by:
            judged_by.drop_constraint("verdict_key", type_="unique")
            judged_by.create_unique_constraint("verdict_key", ["job_id", "attempt", "stage", "subject"])
            for newer in NEWER_OF_VERDICT:
                judged_by.drop_column(newer)
        connection.execute(text("ALTER TABLE batch DROP COLUMN forgiven"))
        connection.execute(text("ALTER TABLE upload DROP COLUMN purged_at"))
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
        if connection.dialect.name == "postgresql":
            connection.execute(text("ALTER FUNCTION law1_published_update() RESET search_path"))
    db.migrate(desk.engine)
    assert db.triggers(desk.engine) == db.required_triggers(desk.engine)
    if desk.engine.dialect.name == "postgresql":
        (function,) = desk.rows("SELECT proconfig FROM pg_proc WHERE proname = 'law1_published_update'")
        assert "search_path=public, pg_temp" in function["proconfig"]
    with db.reading(desk.engine) as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    assert desk.states(batch) == {"queued": 1, "leased": 1}
    assert desk.rows("SELECT * FROM verdict") == judged
    assert desk.queue.record([(lease, verdict("f" * 64, stage=Stage.PREVIEW))]) != [None]


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def test_processes_that_start_at_once_migrate_once(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if kind == "sqlite":
        url = f"sqlite:///{tmp_path / 'new' / 'farm.db'}"
    else:
        url = fresh_postgres(request.getfixturevalue("postgres_server"))
    starts = [subprocess.Popen([sys.executable, "-c", START, url], stderr=subprocess.PIPE) for _ in range(4)]
    said = [process.communicate()[1] for process in starts]
    assert [process.returncode for process in starts] == [0] * 4, said
    engine = db.connect(url)
    assert db.triggers(engine) == db.required_triggers(engine)
    engine.dispose()


def test_a_read_only_connection_cannot_write(desk: Desk, database_url: str) -> None:
    desk.submit(count=1)
    engine = db.connect(database_url, read_only=True)
    with db.reading(engine) as connection:
        assert connection.execute(text("SELECT count(*) FROM job")).scalar() == 1
    with pytest.raises(Exception, match=r"read-?only"):
        db.transact(engine, lambda connection: connection.execute(text("DELETE FROM job")))
    engine.dispose()


def test_sqlite_commits_are_durable(tmp_path: Path) -> None:
    engine = db.connect(f"sqlite:///{tmp_path / 'farm.db'}")
    with db.reading(engine) as connection:
        settings = [
            connection.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    assert settings == ["wal", 2, 1]
    engine.dispose()


def test_a_locked_database_is_an_outage_and_work_goes_on_when_it_clears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "BUSY_S", 0.1)
    engine = db.connect(f"sqlite:///{tmp_path / 'farm.db'}")
    db.migrate(engine)
    desk = Desk(engine)
    desk.submit(count=1)
    other = sqlite3.connect(tmp_path / "farm.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Fault, match="locked") as caught:
        desk.claim()
    assert (caught.value.cause, caught.value.status) == (Cause.DATABASE_DOWN, 503)
    other.execute("ROLLBACK")
    other.close()
    assert len(desk.claim()) == 1
    engine.dispose()


def test_a_server_that_is_gone_is_an_outage() -> None:
    queue = JobQueue(db.connect("postgresql://farm@127.0.0.1:1/farm"))
    with pytest.raises(Fault) as caught:
        queue.lanes()
    assert caught.value.cause is Cause.DATABASE_DOWN
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.cause, again.detail) == (Cause.DATABASE_DOWN, caught.value.detail)
    queue.engine.dispose()


@pytest.mark.postgres
def test_a_server_whose_machine_falls_silent_is_noticed_soon(postgres_server: str) -> None:
    engine = db.connect(postgres_server)
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        with socket.socket(fileno=os.dup(driver.fileno())) as line:
            idle, every, times = (
                line.getsockopt(socket.IPPROTO_TCP, option)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            )
            assert idle + every * times <= 30
            assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
    engine.dispose()


@pytest.mark.postgres
def test_a_connection_that_was_cut_is_replaced(postgres_server: str) -> None:
    url = fresh_postgres(postgres_server)
    engine = db.connect(url)
    db.migrate(engine)
    desk = Desk(engine)
    admin = create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        cut = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name")
        connection.execute(cut, {"name": make_url(url).database})
    assert desk.queue.lanes() == []
    admin.dispose()
    engine.dispose()


def test_a_wrong_statement_is_not_an_outage(desk: Desk) -> None:
    desk.submit(count=1)
    for statement, error in (("UPDATE job SET state = 'x'", IntegrityError), ("UPDATE job SET sate = 'x'", DBAPIError)):
        with pytest.raises(error):
            db.transact(desk.engine, functools.partial(Connection.execute, statement=text(statement)))
    assert desk.states(1) == {"queued": 1}


def plan(desk: Desk, query: Select[Any] = CLAIM) -> str:
    compiled = query.compile(desk.engine, compile_kwargs={"render_postcompile": True})
    values = compiled.params | ({"lane": 1, "now": 1.0, "at_most": 4} if query is CLAIM else {})
    with db.reading(desk.engine) as connection:
        if desk.engine.dialect.name == "sqlite":
            given = tuple(values[name] for name in compiled.positiontup or [])
            rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}", given).all()
        else:
            rows = connection.exec_driver_sql(f"EXPLAIN {compiled}", values).all()
    return "; ".join(row[-1] for row in rows)


def test_a_claim_goes_straight_to_its_index_and_sorts_nothing(desk: Desk) -> None:
    desk.submit(count=3000)
    if desk.engine.dialect.name == "postgresql":
        assert "job_claim" in plan(desk), "with no statistics yet"
        desk.sql("ANALYZE job")
    assert "job_claim" in plan(desk)
    assert "Sort" not in plan(desk)
    assert "TEMP B-TREE" not in plan(desk)
    assert "SCAN job" not in plan(desk)


@pytest.mark.parametrize(
    ("batch", "states", "index"),
    [
        (None, [None], "job_project"),
        (1, [None], "job_batch"),
        (None, ["cancelled"], "job_project_state"),
        (1, ["cancelled"], "job_batch_state"),
    ],
)
def test_a_page_of_jobs_is_read_from_its_index_and_sorts_nothing(
    desk: Desk, batch: int | None, states: list[str | None], index: str
) -> None:
    Access(desk.engine).create_project("theirs")
    desk.submit(count=200)
    desk.submit(count=3000, project="theirs")
    desk.sql("UPDATE job SET state = 'cancelled' WHERE id % 20 = 0")
    if desk.engine.dialect.name == "postgresql":
        desk.sql("ANALYZE job")
        desk.sql("ANALYZE batch")
    found = plan(desk, job_page("ours", batch, states, 0, 5))
    assert re.search(rf"\b{index}\b", found), found
    for slow in ("Sort", "TEMP B-TREE", "SCAN job", "Seq Scan", "Bitmap"):
        assert slow not in found


def test_what_a_batch_waits_for_is_read_from_its_index(desk: Desk) -> None:
    desk.submit(count=3000)
    if desk.engine.dialect.name == "postgresql":
        desk.sql("ANALYZE job")
    assert "job_waits" in plan(desk, waits(1))
