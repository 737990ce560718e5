"""`farm keys`: what it prints, and that every change is on the audit record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from farm import audit
from farm.cli import OwnVerifier, _run
from farm.db import connect
from farm.errors import Fault
from farm.job import Cause
from provenance import keys
from provenance.keyfiles import pem
from provenance.signing import Signing
from tests.provenance.test_authority import certified
from tests.provenance.test_verify import MANIFEST, encoded

REQUEST = ["csr", "--name", "our signer", "--organization", "Us", "--country", "ZZ"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FARM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert _run(["keys", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def deeds(home: Path) -> list[tuple[str, str]]:
    engine = connect(f"sqlite:///{home}/farm.db")
    audit.seal(engine)
    found = [(row["actor"], row["action"]) for row in audit.read(engine)]
    engine.dispose()
    return found


def test_every_change_is_told_and_on_record(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["keys", "ls"]) == 0
    assert "no keys yet" in capsys.readouterr().err
    made = told(capsys, "init", "--algorithm", "ed25519", "--by", "ann")
    assert (made["role"], made["state"], made["algorithm"], made["rests"]) == ("leaf", "in use", "ed25519", "open")
    second = told(capsys, "rotate", "--by", "ann")
    assert second["serial"] != made["serial"]
    revoked = told(capsys, "revoke", made["serial"], "--reason", "lost", "--since", "2026-01-01", "--by", "bob")
    assert revoked == {"serial": made["serial"], "since": "2026-01-01", "reason": "lost"}
    assert keys.revoked(home) == {made["serial"]: 1767225600.0}
    states = {row["serial"]: row["state"] for row in told(capsys, "ls")}
    assert (states[made["serial"]], states[second["serial"]]) == ("revoked", "in use")
    listed = told(capsys, "trust")
    assert [one["serial"] for one in listed["revoked"]] == [made["serial"]]
    assert _run(["keys", "trust"]) == 0
    assert capsys.readouterr().out == listed["pem"]
    assert deeds(home) == [("ann", "make keys"), ("ann", "rotate key"), ("bob", "revoke certificate")]
    assert _run(["keys", "ls"]) == 0
    assert capsys.readouterr().out.count("leaf") == 2


def test_who_revokes_a_root_is_told_to_hand_out_the_list(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["keys", "revoke", "12345", "--reason", "another machine's"]) == 0
    assert "the trust list is another" not in capsys.readouterr().err
    own = next(row["serial"] for row in told(capsys, "ls") if row["role"] == "root")
    assert _run(["keys", "revoke", own, "--reason", "stolen"]) == 0
    assert "the trust list is another" in capsys.readouterr().err


def test_wrong_words_change_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["keys", "revoke", "abc", "--reason", "lost"]) == 2
    assert _run(["keys", "revoke", "12", "--reason", "lost", "--since", "noon"]) == 2
    assert _run(["keys", "rotate", "--certificate", "none.pem"]) == 2
    assert _run(["keys", "trust", "--add", "none.pem"]) == 2
    assert _run(["keys", "init", "--algorithm", "rsa"]) == 2
    assert not (home / "keys").exists()
    said = capsys.readouterr().err
    assert "no serial number" in said
    assert "no time" in said
    assert said.count("no file none.pem") == 2


def test_a_certificate_of_another_authority_is_taken(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = keys.init(tmp_path / "other")
    request = told(capsys, *REQUEST)["csr"]
    answer = certified(request, tmp_path / "other")
    (tmp_path / "answer.pem").write_text("".join(map(pem, answer)))
    (tmp_path / "root.pem").write_text(other.root)
    assert _run(["keys", "rotate", "--certificate", "answer.pem"]) == 2
    assert "farm keys trust --add" in capsys.readouterr().err
    assert _run(["keys", "trust", "--add", "answer.pem"]) == 2
    assert _run(["keys", "trust", "--add", "root.pem"]) == 0
    capsys.readouterr()
    taken = told(capsys, "rotate", "--certificate", "answer.pem")
    assert taken["serial"] == str(answer[0].serial_number)
    assert [action for _, action in deeds(home)] == ["request certificate", "trust", "rotate key"]


def test_a_root_that_is_trusted_no_longer_is_on_record(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = keys.init(tmp_path / "other")
    (tmp_path / "root.pem").write_text(other.root)
    both = told(capsys, "trust", "--add", "root.pem")
    (root,) = x509.load_pem_x509_certificates(other.root.encode())
    one = told(capsys, "trust", "--remove", str(root.serial_number), "--by", "ann")
    assert (len(both["roots"]), len(one["roots"])) == (2, 1)
    assert deeds(home)[-1] == ("ann", "distrust")
    assert _run(["keys", "trust", "--remove", "12"]) == 2
    own = next(row["serial"] for row in told(capsys, "ls") if row["role"] == "root")
    assert _run(["keys", "trust", "--remove", own]) == 1
    assert f"farm keys revoke {own}" in capsys.readouterr().err


def test_what_another_authority_certified_is_verified_by_the_dispatcher(home: Path, tmp_path: Path) -> None:
    """It may have begun before that root was trusted."""
    verifier = OwnVerifier(home)
    with pytest.raises(Fault) as caught:
        verifier.verify(b"", "image/png")
    assert caught.value.cause is Cause.SIGNER_DOWN
    keys.init(home)
    other = keys.init(tmp_path / "other")
    signed = Signing(other).sign(MANIFEST, encoded("png"), "image/png")
    assert verifier.verify(signed.data, signed.mime).verdict == "Valid"
    (tmp_path / "root.pem").write_text(other.root)
    assert _run(["keys", "trust", "--add", str(tmp_path / "root.pem")]) == 0
    assert verifier.verify(signed.data, signed.mime).verdict == "Trusted"
    assert len(x509.load_pem_x509_certificates(keys.trust(home).encode())) == 2
