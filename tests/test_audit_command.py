"""`farm verify --audit`: a whole log is said to be whole; what was done to one is said by row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest
from sqlalchemy import Engine, text

from farm import audit
from farm.cli import _run
from farm.db import connect, transact
from farm.ports import Signer
from provenance import keys


@pytest.fixture
def log(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Five rows, the head of the fourth signed with the audit key of this home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FARM_HOME", str(tmp_path))
    monkeypatch.setenv("FARM_DATABASE", database_url)
    engine = connect(database_url)
    write(engine, 4)
    audit.sign_head(engine, cast(Signer, keys.init(tmp_path)))
    write(engine, 1)
    return engine


def write(engine: Engine, count: int) -> None:
    for _ in range(count):
        transact(engine, lambda connection: audit.append(connection, "ours", "ann", "did", "it", 1.5))
    audit.seal(engine)


def tamper(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            for name in (
                connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars().all()
            ):
                connection.execute(text(f"DROP TRIGGER {name}"))
        else:
            connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text(statement))
    engine.dispose()


def test_a_whole_log_is_said_to_be_whole(log: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["verify", "--audit"]) == 0
    said = "audit log: whole; rows: 5, signed heads: 1; rows after 4 are not signed for yet"
    assert capsys.readouterr().err.strip() == said
    assert _run(["verify", "--audit", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"rows": 5, "unsealed": 0, "heads": 1, "signed_to": 4, "wrong": [], "whole": True}
    log.dispose()


@pytest.mark.parametrize(
    ("statement", "row", "word"),
    [
        ("UPDATE audit SET actor = 'bob' WHERE seq = 2", 2, "changed"),
        ("DELETE FROM audit WHERE seq = 3", 3, "missing"),
        ("DELETE FROM audit WHERE seq > 3", 4, "the row is gone"),
        ("UPDATE audit_head SET signature = 'bm8='", 4, "not made with the audit key"),
        ("UPDATE audit_head SET sha256 = 'other'", 4, "not the row whose head was signed"),
    ],
)
def test_what_was_done_to_it_is_said_by_row(
    log: Engine, capsys: pytest.CaptureFixture[str], statement: str, row: int, word: str
) -> None:
    tamper(log, statement)
    assert _run(["verify", "--audit"]) == 1
    told = capsys.readouterr().out
    assert any(line.startswith(f"row {row}: ") and word in line for line in told.splitlines()), told
    assert _run(["verify", "--audit", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["whole"] is False
    assert row in [flaw["row"] for flaw in found["wrong"]]


def test_another_farms_key_does_not_know_our_heads(
    log: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys.init(tmp_path / "other")
    assert _run(["verify", "--audit", "--trust", str(tmp_path / "other" / "trust" / "audit.pem")]) == 1
    assert "row 4: the signature of its head" in capsys.readouterr().out
    (tmp_path / "no.pem").write_text("nothing")
    assert _run(["verify", "--audit", "--trust", str(tmp_path / "no.pem")]) == 2
    assert _run(["verify", "--audit", "--published"]) == 2
    (tmp_path / "trust" / "audit.pem").unlink()
    assert _run(["verify", "--audit"]) == 1
    assert "start the signer" in capsys.readouterr().err
    log.dispose()
