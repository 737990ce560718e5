"""`farm verify --audit`: a whole log is said to be whole; what was done to one is said by row."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest
from sqlalchemy import Engine, func, select, text

from farm import audit
from farm.cli import _run
from farm.config import Settings
from farm.db import connect, reading, transact
from farm.errors import Forbidden, Unavailable
from farm.ports import Signer
from farm.store import open_store
from farm.tables import AUDIT_HEAD
from provenance import heads, keyfiles, keys
from provenance.notary import Notary


@pytest.fixture
def log(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """Five rows, the head of the fourth signed with the audit key of this home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FARM_HOME", str(tmp_path))
    monkeypatch.setenv("FARM_DATABASE", database_url)
    engine = connect(database_url)
    write(engine, 4)
    audit.sign_head(engine, signer(engine, tmp_path))
    write(engine, 1)
    yield engine
    engine.dispose()


def signer(engine: Engine, home: Path) -> Signer:
    return cast(Signer, Notary(Settings(home=home), engine, open_store(f"file://{home}/store")))


def write(engine: Engine, count: int, actor: str = "ann") -> None:
    for _ in range(count):
        transact(engine, lambda connection: audit.append(connection, "ours", actor, "did", "it", 1.5))
    audit.seal(engine)


def test_signers_that_share_their_keys_sign_for_several_dispatchers_at_once(log: Engine, tmp_path: Path) -> None:
    def dispatch(actor: str) -> None:
        mine = signer(log, tmp_path)
        for _ in range(5):
            write(log, 1, actor)
            audit.sign_head(log, mine)

    with ThreadPoolExecutor(3) as dispatchers:
        list(dispatchers.map(dispatch, "abc"))
    with reading(log) as connection:
        last = connection.execute(select(func.max(AUDIT_HEAD.c.seq))).scalar_one()
    assert last > 15
    for folder in ("keys", "trust"):
        kept = heads.read(tmp_path / folder)
        assert kept is not None
        assert kept.seq == last
    assert _run(["verify", "--audit"]) == 0


def test_a_signer_that_hangs_does_not_hold_up_another_for_ever(
    log: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyfiles, "PATIENCE_S", 0.05)
    with heads.alone(tmp_path), pytest.raises(Unavailable, match=r"another signer holds .*audit\.head\.lock"):
        audit.sign_head(log, signer(log, tmp_path))
    assert audit.sign_head(log, signer(log, tmp_path)) == 5


def test_signers_with_a_copy_of_the_keys_each_guard_what_they_signed(log: Engine, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "keys", other / "keys")
    (other / "keys" / heads.NAME).unlink()
    assert audit.sign_head(log, signer(log, other)) == 5
    write(log, 1)
    assert audit.sign_head(log, signer(log, tmp_path)) == 6
    assert _run(["verify", "--audit"]) == 0
    assert _run(["verify", "--audit", "--trust", str(other / "trust" / "audit.pem")]) == 0
    tamper(log, "DELETE FROM audit_head")
    tamper(log, "DELETE FROM audit WHERE seq = 6")
    write(log, 2, "eve")
    with pytest.raises(Forbidden, match="was cut or rewritten"):
        audit.sign_head(log, signer(log, tmp_path))
    assert audit.sign_head(log, signer(log, other)) == 7, "it knows of no row after 5"


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


CUT = ["DELETE FROM audit_head", "DELETE FROM audit WHERE seq > 3"]
FORGED = ["DELETE FROM audit_head", "UPDATE audit SET actor = 'bob', seq = NULL, previous = NULL, sha256 = NULL"]


@pytest.mark.parametrize("harm", [CUT, FORGED])
@pytest.mark.parametrize("more", [0, 3])
def test_a_log_without_its_heads_is_not_whole_and_not_signed_again(
    log: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: list[str], more: int
) -> None:
    for statement in harm:
        tamper(log, statement)
    write(log, more, "bob")
    assert _run(["verify", "--audit"]) == 1
    assert "row 4: its head was the last one signed" in capsys.readouterr().out
    with pytest.raises(Forbidden, match=r"comes before row 4|no longer holds row 4"):
        audit.sign_head(log, signer(log, tmp_path))


def test_the_signer_goes_on_where_it_was(log: Engine, tmp_path: Path) -> None:
    again = signer(log, tmp_path)
    with reading(log) as connection:
        (earlier,) = connection.execute(text("SELECT sha256 FROM audit WHERE seq = 3")).scalars()
        (last,) = connection.execute(text("SELECT sha256 FROM audit WHERE seq = 4")).scalars()
    assert again.sign_audit_head(4, last), "an answer that was lost is given again"
    with pytest.raises(Forbidden, match="comes before row 4"):
        again.sign_audit_head(3, earlier)
    assert audit.sign_head(log, again) == 5
    assert heads.read(tmp_path / "trust") == heads.read(tmp_path / "keys")
    assert _run(["verify", "--audit"]) == 0


def test_a_record_of_the_last_head_that_is_not_the_signers_is_told(
    log: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trust" / "audit.head"
    path.write_text(path.read_text().replace('"seq": 4', '"seq": 3'))
    assert _run(["verify", "--audit"]) == 1
    assert "row 3: the last signed head, kept outside" in capsys.readouterr().out
    path.write_text("{}")
    assert _run(["verify", "--audit"]) == 1
    assert "audit.head is damaged" in capsys.readouterr().err


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
