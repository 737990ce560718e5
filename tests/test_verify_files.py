"""`farm verify` of files, folders and standard input: a line each, whom it trusts, and what this farm knows of them."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from farm.cli import _run
from farm.config import load
from farm.db import connect, migrate
from farm.job import State
from farm.ports import Outcome
from farm.store import open_store
from provenance import keys, manifest
from provenance.signing import Signing
from tests.provenance.test_verify import MANIFEST, encoded
from tests.queue.conftest import Desk, finished


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FARM_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def folder(home: Path, tmp_path: Path) -> Path:
    """Two signed pictures, one of them deeper; one that carries nothing; and a text."""
    signing, made = Signing(keys.init(home)), tmp_path / "made"
    (made / "more").mkdir(parents=True)
    (made / "b.png").write_bytes(signing.sign(MANIFEST, encoded("png"), "image/png").data)
    (made / "more" / "c.JPG").write_bytes(signing.sign(MANIFEST, encoded("jpeg"), "image/jpeg").data)
    (made / "a.webp").write_bytes(encoded("webp"))
    (made / "notes.txt").write_text("not a picture")
    return made


def rows(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_folder_is_walked_and_one_that_is_not_trusted_is_enough(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(["verify", str(folder), "--json"]) == 1
    bare, first, second = rows(capsys)
    assert [one["path"] for one in (bare, first, second)] == [
        str(folder / name) for name in ("a.webp", "b.png", "more/c.JPG")
    ]
    assert (bare["verdict"], bare["codes"], bare["trusted_by"]) == ("NoManifest", [], None)
    assert "does not mean that it was not made by AI" in bare["sentence"]
    assert (first["verdict"], first["declared"], first["trusted_by"]) == ("Trusted", "made by AI", "this farm")
    assert (len(first["chain"]), first["state"], second["verdict"]) == (3, None, "Trusted")
    (folder / "a.webp").unlink()
    assert _run(["verify", str(folder)]) == 0
    told = capsys.readouterr()
    assert "declared made by AI" in told.out
    assert "2 of 2 are Trusted" in told.err


def test_whom_to_trust_is_given_once_or_more(
    folder: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys.init(tmp_path / "stranger")
    theirs, ours = (str(place / "trust" / "root.pem") for place in (tmp_path / "stranger", home))
    file = str(folder / "b.png")
    assert _run(["verify", file, "--trust", theirs, "--json"]) == 1
    assert _run(["verify", file, "--trust", theirs, "--trust", ours, "--json"]) == 0
    unknown, known = rows(capsys)
    assert (unknown["verdict"], unknown["trusted_by"]) == ("Valid", None)
    assert unknown["meanings"] == {"signingCredential.untrusted": "the signer is not on the trust list"}
    assert (known["verdict"], known["trusted_by"]) == ("Trusted", ours)
    assert _run(["verify", file, "--trust", str(folder / "notes.txt")]) == 2
    assert _run(["verify", file, "--trust", "nowhere.pem"]) == 2


def test_standard_input_is_one_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for data, code in (((folder / "b.png").read_bytes(), 0), (b"", 1)):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        assert _run(["verify", "-", "--json"]) == code
    trusted, empty = rows(capsys)
    assert (trusted["path"], trusted["verdict"]) == ("-", "Trusted")
    assert (empty["verdict"], empty["codes"]) == ("Unreadable", ["farm.type.unknown"])


def test_what_is_not_there_is_said_before_anything_is_verified(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for lacking in ("nowhere.png", "empty"):
        assert _run(["verify", str(folder), str(tmp_path / lacking)]) == 2
    assert capsys.readouterr().out == ""


def test_the_farm_says_what_became_of_a_file_it_knows(
    folder: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A held file that leaked is Trusted all the same."""
    settings = load()
    engine = connect(settings.database_url)
    migrate(engine)
    desk, store = Desk(engine), open_store(settings.store_url)
    desk.submit(count=1)
    (lease,) = desk.claim()
    key = store.put((folder / "b.png").read_bytes())
    desk.queue.publish([finished(lease, desk.judge(lease, Outcome.REVIEW) or 0, Outcome.REVIEW, key=key)])
    assert desk.state(lease.job_id) == State.HELD
    assert _run(["verify", str(folder / "b.png"), str(folder / "more"), "--json"]) == 0
    leaked, unknown = rows(capsys)
    assert (leaked["verdict"], leaked["state"]) == ("Trusted", "held")
    assert unknown["state"] is None
    assert _run(["verify", str(folder / "b.png")]) == 0
    assert "here it is held" in capsys.readouterr().out
    facts = "frame_sha256, manifest_sha256, label, mime, width, height, bytes"
    columns = f"project_id, job_id, verdict_id, created_at, {facts}"
    other = store.put((folder / "more" / "c.JPG").read_bytes())
    desk.sql(f"INSERT INTO artifact ({columns}, key) SELECT {columns}, :key FROM artifact", key=other)
    assert _run(["verify", str(folder / "more"), "--json"]) == 0
    assert rows(capsys)[0]["state"] == "replaced"
    engine.dispose()


def test_a_database_that_is_away_keeps_nobody_from_verifying(
    folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FARM_DATABASE", f"sqlite:///{home}/nowhere/farm.db")
    shutil.copy(folder / "b.png", folder / "d.png")
    assert _run(["verify", str(folder / "b.png"), str(folder / "d.png"), "--json"]) == 0
    told = capsys.readouterr()
    assert told.err.count("is left out") == 1
    assert [json.loads(line)["state"] for line in told.out.splitlines()] == [None, None]


def test_what_this_farm_revoked_is_not_trusted_any_more(
    folder: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(["verify", str(folder / "b.png"), "--json"]) == 0
    serial = rows(capsys)[0]["serial"]
    (home / "trust" / "revoked.json").write_text(json.dumps([{"serial": serial, "since": 0}]))
    assert _run(["verify", str(folder / "b.png"), "--json"]) == 1
    (row,) = rows(capsys)
    assert (row["verdict"], row["meanings"]) == (
        "Invalid",
        {"signingCredential.revoked": "the certificate was revoked"},
    )


def test_a_proof_shows_that_this_was_the_prompt(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    salt, prompt = bytes(range(32)), "a rød circle"
    about = {"prompt_commitment": {"alg": "HMAC-SHA256", "value": manifest.commitment(salt, prompt)}}
    told = [*MANIFEST["assertions"], {"label": "org.renderfarm.generation", "created": True, "data": about}]
    made = Signing(keys.init(home)).sign(MANIFEST | {"assertions": told}, encoded("png"), "image/png").data
    file, proof = tmp_path / "made.png", tmp_path / "proof.json"
    file.write_bytes(made)
    for said, code in ((prompt, 0), ("a red square", 1)):
        proof.write_text(json.dumps({"job_id": 1, "prompt": said, "salt": salt.hex()}))
        assert _run(["verify", str(file), "--proof", str(proof), "--json"]) == code
    assert [(row["verdict"], row["prompt_fits"]) for row in rows(capsys)] == [("Trusted", True), ("Trusted", False)]
    assert _run(["verify", str(file), "--proof", str(proof)]) == 1
    assert "NOT drawn from this prompt" in capsys.readouterr().out
    for wrong in ("", "[]", '{"prompt": "a"}', '{"prompt": "a", "salt": "xy"}'):
        proof.write_text(wrong)
        assert _run(["verify", str(file), "--proof", str(proof)]) == 2
