"""`farm policy lists`, and what doctor says of a list that nobody imported."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import yaml
from sqlalchemy import Connection

from farm import rules
from farm.cli import _run
from farm.commands import doctor
from farm.config import load
from farm.db import connect, transact
from farm.sealed import make_keys
from safety.policy import DEMO

A, B = (hashlib.sha256(letter).hexdigest() for letter in (b"a", b"b"))
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FARM_HOME", str(tmp_path))
    monkeypatch.setenv("FARM_DATABASE", database_url)
    (tmp_path / "good.csv").write_text(f"hash,quality\n{A},100\n{B},10\n{A},90\n")
    (tmp_path / "bad.txt").write_text(f"{A}\nxyz\n\n{A[:-2]}\n")
    return tmp_path


def name_in_force(*names: str) -> None:
    document = json.dumps({"name": "p", "hash_lists": [{"name": one} for one in names]})

    def put(connection: Connection) -> None:
        rules.put(connection, "active", document, "ann", "default", 1.0)

    engine = connect(load().database_url)
    transact(engine, put)
    engine.dispose()


def test_lists_come_and_go_by_command(folder: Path, capsys: Capture) -> None:
    assert _run(["policy", "lists", "ls"]) == 0
    assert "no hash list is there" in capsys.readouterr().err
    assert _run(["policy", "lists", "import", "known", "bad.txt", "--kind", "pdq"]) == 2
    said = capsys.readouterr().err
    assert "line 2: 'x' is no hexadecimal digit\n  line 4: has 62 digits, not 64\n" in said
    assert "nothing was imported" in said
    assert _run(["policy", "lists", "import", "known", "good.csv", "--kind", "pdq", "--by", "Ann"]) == 0
    said = capsys.readouterr().err
    assert "known holds 1 digest (pdq); left out: 1 given twice; left out: 1 of a quality of 49 or less" in said
    assert _run(["policy", "lists", "ls", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["kind"], row["entries"], row["person"]) == ("known", "pdq", 1, "Ann")
    assert (row["named_by"], row["found"], row["illegal"]) == ([], 0, 0)
    assert _run(["policy", "lists", "import", "known", "good.csv", "--kind", "pdq"]) == 1
    assert "--replace" in capsys.readouterr().err
    assert _run(["policy", "lists", "import", "known", "good.csv", "--kind", "sha256", "--replace"]) == 2
    assert "only PDQ hashes have a quality" in capsys.readouterr().err
    Path("plain.txt").write_text(f"{A}\n{B}\n")
    assert _run(["policy", "lists", "import", "known", "plain.txt", "--kind", "sha256", "--replace"]) == 0
    assert "known holds 2 digests (sha256)\n" in capsys.readouterr().err
    assert _run(["policy", "lists", "remove", "knwon"]) == 1
    assert "did you mean 'known'?" in capsys.readouterr().err
    assert _run(["policy", "lists", "remove", "known"]) == 0
    assert _run(["policy", "lists", "import", "known", "nowhere.txt", "--kind", "pdq"]) == 2


def test_check_says_what_a_policy_would_still_need(folder: Path, capsys: Capture) -> None:
    document = yaml.safe_load(DEMO.read_text())
    rule = {"outcome": "block", "code": "known", "words": "It is known."}
    document["hash_lists"] = [{"name": name} | rule for name in ("known", "never")]
    document["concepts"][0]["pixels"] = {"quarantine_days": 7}
    Path("policy.yaml").write_text(yaml.safe_dump(document))
    assert _run(["policy", "lists", "import", "known", "good.csv", "--kind", "pdq"]) == 0
    assert _run(["policy", "check", "policy.yaml", "--json"]) == 0
    never, kept = json.loads(capsys.readouterr().out)["doubts"]
    assert "nobody imported its hash list never" in never
    assert "in quarantine is discarded" in kept
    make_keys(folder)
    assert _run(["policy", "check", "policy.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["doubts"] == [never]


def test_a_list_that_nobody_imported_is_said_by_doctor_and_by_the_listing(folder: Path, capsys: Capture) -> None:
    assert _run(["policy", "lists", "ls"]) == 0
    name_in_force("known", "never")
    assert _run(["policy", "lists", "import", "known", "good.csv", "--kind", "pdq"]) == 0
    assert _run(["policy", "lists", "ls"]) == 0
    known, never = capsys.readouterr().out.splitlines()[-2:]
    assert "NOT IMPORTED" in never
    assert "active" in known
    found = doctor._run("lists", doctor.CHECKS["lists"], load())
    assert (found.ok, found.detail) == (
        False,
        "never: never imported, so all that the policy applies them to goes to review",
    )
    name_in_force("known")
    assert doctor._run("lists", doctor.CHECKS["lists"], load()).ok
