"""Events are never lost to a reader that resumes; the audit chain shows what was done to it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, text

from farm import audit, events
from farm.db import connect, migrate, reading, transact
from tests.conftest import fresh_postgres
from tests.fakes import StampSigner
from tests.queue.conftest import Desk


def write(engine: Engine, kind: str, project: str = "ours") -> None:
    transact(engine, lambda connection: events.append(connection, [events.event(project, kind, 0.0)]))


@pytest.mark.postgres
def test_a_reader_that_resumes_misses_nothing_though_commits_come_out_of_order(postgres_server: str) -> None:
    engine = connect(fresh_postgres(postgres_server))
    migrate(engine)
    slow = engine.connect()
    slow_transaction = slow.begin()
    events.append(slow, [events.event("ours", "slow", 0.0)])
    write(engine, "quick")
    ids = engine.connect()
    events.seal(engine)
    (first,) = events.read(engine)
    assert first["kind"] == "quick"
    slow_transaction.commit()
    events.seal(engine)
    (second,) = events.read(engine, after_seq=first["seq"])
    assert (second["kind"], second["id"] < first["id"]) == ("slow", True)
    for connection in (slow, ids):
        connection.close()
    engine.dispose()


def test_many_writers_and_sealers_lose_and_double_nothing(desk: Desk, another: Callable[[], Engine]) -> None:
    engines, done = [another() for _ in range(3)], threading.Event()
    seen: list[str] = []

    def follow() -> None:
        last = 0
        while True:
            finished = done.is_set()
            events.seal(desk.engine)
            batch = events.read(desk.engine, after_seq=last, limit=7)
            seen.extend(event["kind"] for event in batch)
            last = batch[-1]["seq"] if batch else last
            if finished and not batch:
                return

    def produce(number: int) -> None:
        for count in range(30):
            write(engines[number], f"{number}/{count}")
            events.seal(engines[number])

    reader = threading.Thread(target=follow)
    reader.start()
    with ThreadPoolExecutor(len(engines)) as pool:
        list(pool.map(produce, range(len(engines))))
    done.set()
    reader.join()
    assert sorted(seen) == sorted(f"{number}/{count}" for number in range(3) for count in range(30))
    numbers = [event["seq"] for event in events.read(desk.engine, limit=1000)]
    assert numbers == list(range(1, 91))


def test_events_of_another_project_are_not_read(desk: Desk) -> None:
    write(desk.engine, "mine")
    write(desk.engine, "theirs", project="theirs")
    assert events.seal(desk.engine) == 2
    assert [event["kind"] for event in events.read(desk.engine, project_id="ours")] == ["mine"]
    assert events.last_seq(desk.engine) == 2


def chain(desk: Desk, count: int = 6) -> None:
    for number in range(count):
        with desk.engine.begin() as connection:
            audit.append(connection, "ours", "ann", "did", f"it {number}", 0.1 * number, deep={"ö": [number, None]})
    assert audit.seal(desk.engine) == count


def report(desk: Desk) -> audit.ChainReport:
    with reading(desk.engine) as connection:
        return audit.verify_chain(connection, lambda seq, sha256, signature: signature == f"{seq} {sha256}")


def complaints(desk: Desk) -> str:
    return "; ".join(map(str, report(desk).wrong))


def tamper(desk: Desk, *statements: str) -> None:
    """As somebody could who owns the database: switch the triggers off first."""
    with desk.engine.begin() as connection:
        if desk.engine.dialect.name == "sqlite":
            for name in (
                connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars().all()
            ):
                connection.execute(text(f"DROP TRIGGER {name}"))
        else:
            connection.execute(text("SET LOCAL session_replication_role = replica"))
        for statement in statements:
            connection.execute(text(statement))


def test_an_untouched_chain_is_whole_and_grows(desk: Desk) -> None:
    chain(desk)
    assert audit.sign_head(desk.engine, StampSigner(), desk.clock) == 6
    assert audit.sign_head(desk.engine, StampSigner(), desk.clock) is None
    chain(desk)
    assert complaints(desk) == ""
    assert [row["seq"] for row in audit.read(desk.engine)] == list(range(1, 13))


@pytest.mark.parametrize(
    ("statements", "complaint"),
    [
        (["UPDATE audit SET actor = 'bob' WHERE seq = 3"], "row 3: changed"),
        (["UPDATE audit SET data = '{}' WHERE seq = 3"], "row 3: changed"),
        (["UPDATE audit SET created_at = created_at + 1 WHERE seq = 3"], "row 3: changed"),
        (["DELETE FROM audit WHERE seq = 3"], "row 3: missing"),
        (["DELETE FROM audit WHERE seq = 3", "UPDATE audit SET seq = seq - 1 WHERE seq > 3"], "row 3: does not follow"),
        (
            [
                "UPDATE audit SET seq = 99 WHERE seq = 2",
                "UPDATE audit SET seq = 2 WHERE seq = 3",
                "UPDATE audit SET seq = 3 WHERE seq = 99",
            ],
            "row 2: does not follow",
        ),
        (["DELETE FROM audit WHERE seq > 4"], "row 6: its head was signed, but the row is gone"),
        (["DELETE FROM audit"], "row 6: its head was signed, but the row is gone"),
    ],
)
def test_tampering_shows(desk: Desk, statements: list[str], complaint: str) -> None:
    chain(desk)
    audit.sign_head(desk.engine, StampSigner(), desk.clock)
    tamper(desk, *statements)
    assert complaint in complaints(desk)


def test_a_chain_forged_anew_does_not_match_its_signed_head(desk: Desk) -> None:
    chain(desk)
    audit.sign_head(desk.engine, StampSigner(), desk.clock)
    tamper(desk, "UPDATE audit SET actor = 'bob', seq = NULL, sha256 = NULL, previous = NULL")
    audit.seal(desk.engine)
    assert complaints(desk) == "row 6: is not the row whose head was signed"


def test_a_forged_head_does_not_bear_our_signature(desk: Desk) -> None:
    chain(desk)
    audit.sign_head(desk.engine, StampSigner(), desk.clock)
    tamper(desk, "UPDATE audit SET actor = 'bob', seq = NULL, sha256 = NULL, previous = NULL")
    audit.seal(desk.engine)
    assert complaints(desk) == "row 6: is not the row whose head was signed"
    tamper(desk, "UPDATE audit_head SET sha256 = (SELECT sha256 FROM audit WHERE seq = 6)")
    assert complaints(desk) == "row 6: the signature of its head was not made with the audit key"


def test_the_report_counts_what_it_looked_at(desk: Desk) -> None:
    chain(desk)
    audit.sign_head(desk.engine, StampSigner(), desk.clock)
    chain(desk, 2)
    with desk.engine.begin() as connection:
        audit.append(connection, "ours", "ann", "did", "it", 0.0)
    assert report(desk) == audit.ChainReport(rows=8, unsealed=1, heads=1, signed_to=6, wrong=())
