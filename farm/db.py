"""The database: SQLite or PostgreSQL behind one door. Every transaction of the farm goes through `transact` or
`reading`.

SQLite runs in WAL mode with synchronous=FULL, because law 3 holds over a power cut too: at NORMAL the last commits may
be gone afterwards, and with them a batch whose sender was told it is safe. A writer says BEGIN IMMEDIATE, so that it
waits for its turn at the start and never fails half way. PostgreSQL keeps its own defaults (fsync and
synchronous_commit on).
"""

from __future__ import annotations

import json
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar
from weakref import WeakKeyDictionary

import psycopg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, Table, create_engine, event, insert, make_url, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import Pool

from farm.errors import Conflict, Fault
from farm.job import Cause
from farm.migrations import triggers as law1

BUSY_S = 30.0  # how long one statement waits for another's lock; SQLite is not fair, and a slow disk makes it less so
TRIES = 5  # of a transaction that PostgreSQL chose as the victim of a deadlock
MIGRATION_LOCK, EVENT_LOCK, AUDIT_LOCK = 0xFA12, 0xFA13, 0xFA14
# What SQLite says when the trouble lies around the database and not in the statement.
SQLITE_TROUBLE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_NOTADB,
}
DEADLOCK = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)
_TURNS: WeakKeyDictionary[Pool, threading.RLock] = WeakKeyDictionary()  # of the writers of one SQLite database
_MIGRATING = threading.Lock()  # Alembic keeps its context in a module

P = ParamSpec("P")
T = TypeVar("T")


class DatabaseDown(Fault):
    """Locked, full, or gone: the work waits (law 9) and a request is told to come again."""

    status, title = 503, "The database is not available now"

    def __init__(self, detail: str) -> None:
        super().__init__(Cause.DATABASE_DOWN, detail)


def connect(url: str, read_only: bool = False) -> Engine:
    parsed = make_url(url)
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    return _sqlite(parsed, read_only) if parsed.get_backend_name() == "sqlite" else _postgres(parsed, read_only)


def _sqlite(url: URL, read_only: bool) -> Engine:
    path = Path(url.database or "")
    if read_only:
        url = URL.create("sqlite", database=f"file:{path.absolute()}", query={"mode": "ro", "uri": "true"})
    else:
        path.parent.mkdir(0o700, parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": BUSY_S, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def settle(connection: sqlite3.Connection, _: Any) -> None:
        connection.isolation_level = None  # BEGIN is ours to say
        if not read_only:
            _use_wal(connection)
        for pragma in (
            "synchronous = FULL",
            "foreign_keys = ON",
            "recursive_triggers = ON",
            f"query_only = {read_only:d}",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", not read_only)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _use_wal(connection: sqlite3.Connection) -> None:
    """Only the first process changes the mode, and SQLite does not let the others wait for it: ask again."""
    until = time.monotonic() + BUSY_S
    while True:
        try:
            if connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] == "wal":
                return
        except sqlite3.OperationalError:
            if time.monotonic() > until:
                raise
        time.sleep(0.01 + random.random() / 50)  # noqa: S311


def _postgres(url: URL, read_only: bool) -> Engine:
    settings = {
        "lock_timeout": f"{BUSY_S:.0f}s",
        # A stopped process must not hold its rows for ever.
        "idle_in_transaction_session_timeout": "60s",
        "default_transaction_read_only": "on" if read_only else "off",
        # Every hot query has its index. Without these a plan made while a table was empty, or before its first ANALYZE,
        # reads the whole of it: throughput fell to half after 20,000 jobs.
        "enable_seqscan": "off",
        "plan_cache_mode": "force_custom_plan",
        "jit": "off",
        "application_name": "farm",
    }
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    # A server whose machine is gone is noticed in half a minute, not after the quarter of an hour that TCP would wait.
    tcp = {"keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 30_000}
    arguments = {"connect_timeout": 5, "options": options} | tcp
    return create_engine(url, connect_args=arguments, pool_pre_ping=True, pool_timeout=BUSY_S)


@contextmanager
def outages() -> Iterator[None]:
    """Turn what the driver says of an outage into the farm's own words; mistakes in a statement stay what they are."""
    try:
        yield
    except PoolTimeout as error:
        raise DatabaseDown("every connection to the database is in use") from error
    except DBAPIError as error:
        if not _is_outage(error):
            raise
        raise DatabaseDown(str(error.orig).strip().split("\n", maxsplit=1)[0]) from error


def _is_outage(error: DBAPIError) -> bool:
    if isinstance(error.orig, sqlite3.Error):
        return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in SQLITE_TROUBLE
    return error.connection_invalidated or isinstance(error.orig, psycopg.OperationalError | psycopg.InterfaceError)


@contextmanager
def _turn(engine: Engine) -> Iterator[None]:
    """SQLite lets a writer that waits sleep ever longer, up to 0.1 s, and look again: those of one process wait for one
    another here, and go on at once."""
    if engine.dialect.name != "sqlite":
        yield
        return
    turn = _TURNS.setdefault(engine.pool, threading.RLock())
    if not turn.acquire(timeout=BUSY_S):
        raise DatabaseDown("the database is locked by another thread")
    try:
        yield
    finally:
        turn.release()


def transact(engine: Engine, work: Callable[[Connection], T]) -> T:
    """Run one short transaction; commit it whole or not at all."""
    writer = engine.execution_options(writes=True)
    for attempt in range(1, TRIES + 1):
        try:
            with _turn(engine), outages(), writer.begin() as connection:
                return work(connection)
        except DatabaseDown as error:
            original = getattr(error.__cause__, "orig", None)
            if attempt == TRIES or not isinstance(original, DEADLOCK):
                raise
            time.sleep(random.random() * 0.05 * attempt)  # noqa: S311
    raise AssertionError("the loop above returns or raises")


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    with outages(), engine.execution_options(writes=False).begin() as connection:
        yield connection


class HasEngine(Protocol):
    @property
    def engine(self) -> Engine: ...


S = TypeVar("S", bound=HasEngine)


def transaction(work: Callable[Concatenate[S, Connection, P], T]) -> Callable[Concatenate[S, P], T]:
    """A method that takes a connection becomes one that is a transaction of its own."""

    def method(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return transact(self.engine, lambda connection: work(self, connection, *args, **kwargs))

    method.__name__, method.__doc__ = work.__name__, work.__doc__
    return method


def insert_many(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows with the same columns. PostgreSQL takes them as one JSON value: row by row costs it ten times as much."""
    if not rows:
        return
    if connection.dialect.name == "sqlite":
        connection.execute(insert(table), rows)
        return
    columns = ", ".join(f'"{name}"' for name in rows[0])
    source = f"json_populate_recordset(NULL::{table.name}, CAST(:rows AS json))"
    statement = f"INSERT INTO {table.name} ({columns}) SELECT {columns} FROM {source}"  # noqa: S608 - our own names
    connection.execute(text(statement), {"rows": as_json(rows)})


def as_json(rows: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps(rows, allow_nan=False, default=lambda value: f"\\x{value.hex()}")


def upsert(connection: Connection, table: Table) -> sqlite_dialect.Insert | postgresql.Insert:
    """An INSERT that knows ON CONFLICT, which both databases spell alike."""
    return sqlite_dialect.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


def only_one(connection: Connection, lock: int) -> None:
    """Hold `lock` until the transaction ends. SQLite's writers are alone anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": lock})


def migrate(engine: Engine) -> None:
    """Bring the schema up to date. Safe when several processes start at once: one does it, the others find it done."""
    config = _migrations()
    head = ScriptDirectory.from_config(config).get_current_head()

    def upgrade(connection: Connection) -> None:
        only_one(connection, MIGRATION_LOCK)
        names = law1.names(connection.dialect.name)
        current = version(connection)
        if current == head and law1.standing(connection) == names:
            return
        law1.drop(connection, names)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        law1.create(connection)

    with _MIGRATING:
        transact(engine, upgrade)


def version(connection: Connection) -> str | None:
    """Of the schema; one that only a newer Farm knows is refused."""
    current = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in ScriptDirectory.from_config(_migrations()).walk_revisions()}
    if current is not None and current not in known:
        says = f"this database was made by a newer Farm: its version {current} is not known here"
        raise Conflict(says, field="database", fix="run that Farm, or set FARM_DATABASE to another")
    return current


def _migrations() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def triggers(engine: Engine) -> set[str]:
    """The names of our triggers that stand in the database as they were written, and are switched on."""
    with reading(engine) as connection:
        return law1.standing(connection)


def required_triggers(engine: Engine) -> set[str]:
    """The names of those that must: without them nothing holds law 1 but good manners."""
    return law1.names(engine.dialect.name)
