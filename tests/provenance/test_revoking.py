"""A certificate of which nobody should believe a signature any more, and what its files are then."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path

import pytest

from provenance import chain, keys, report
from provenance.container import manifest_store
from provenance.report import Report
from provenance.revoking import revoke
from provenance.signing import Parent, Signing
from provenance.verify import told, verify_bytes, verify_files
from tests.provenance.test_verify import EDIT, MANIFEST, encoded

STAMPED = "2026-11-01T12:00:00+00:00"
AT = dt.datetime.fromisoformat(STAMPED).timestamp()


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes, str]:
    """A picture, an edit of it by another signer of the same farm, and the farm's root."""
    home = tmp_path_factory.mktemp("revoking")
    first = Signing(keys.init(home))
    made = first.sign(MANIFEST, encoded("png"), "image/png").data
    (home / "keys" / "leaf.pem").unlink()
    second = Signing(keys.init(home))
    parent = Parent(made, "image/png", "the first")
    return made, second.sign(EDIT, encoded("png", 2), "image/png", parent).data, second.keys.root


def test_the_chain_goes_up_to_whom_we_trust(signed: tuple[bytes, bytes, str], tmp_path: Path) -> None:
    made, edited, root = signed
    found = verify_bytes(edited, None, root)
    assert [one.subject.split(",")[0] for one in found.chain] == [
        "CN=Farm development signer",
        "CN=Farm development issuing CA",
        "CN=Farm development root",
    ]
    assert found.chain[0].serial == found.serial != verify_bytes(made, None, root).serial == found.ancestors[0].serial
    assert found.anchor == found.chain[-1].sha256
    other = keys.init(tmp_path).root
    assert told(found, [("another", other), ("ours", root)])["trusted_by"] == "ours"
    unknown = verify_bytes(edited, None, other)
    assert (unknown.verdict, unknown.anchor, len(unknown.chain)) == ("Valid", None, 2)
    assert told(unknown, [("another", other)])["trusted_by"] is None


def test_a_certificate_that_cannot_be_read_is_passed_over(signed: tuple[bytes, bytes, str]) -> None:
    """Its issuer's name is a string of bits, which shows only when the name is asked for."""
    made = signed[0]
    store = manifest_store(made) or b""
    name = b"\x0c" + bytes([len("Farm development issuing CA")]) + b"Farm development issuing CA"
    at = store.index(name)
    assert len(chain.found_in(store)) == 2
    assert len(chain.found_in(store[:at] + b"\x03" + store[at + 1 :])) == 1


def test_what_a_revoked_certificate_signed_is_invalid(signed: tuple[bytes, bytes, str], tmp_path: Path) -> None:
    made, edited, root = signed
    found = verify_bytes(edited, None, root)
    for link in found.chain:
        bad = verify_bytes(edited, None, root, {link.serial: AT})
        assert (bad.verdict, bad.codes) == ("Invalid", ("signingCredential.revoked",))
        assert "revoked" in bad.sentence
    assert verify_bytes(edited, None, root, {"1": AT}) == found
    (tmp_path / "made.png").write_bytes(made)
    (file,) = verify_files([tmp_path / "made.png"], root, {found.ancestors[0].serial or "": AT})
    assert file.report.verdict == "Invalid"


def test_the_child_of_what_one_signed_is_suspect(signed: tuple[bytes, bytes, str]) -> None:
    _, edited, root = signed
    whole = verify_bytes(edited, None, root)
    bad = verify_bytes(edited, None, root, {whole.ancestors[0].serial or "": AT})
    assert (bad.verdict, bad.codes) == ("SuspectAncestor", ("signingCredential.revoked",))
    assert "'the first'" in bad.sentence
    assert bad.ancestors[0].verdict == "Invalid"


@pytest.mark.parametrize(("revoked_at", "verdict"), [(AT + 1, "Trusted"), (AT, "Invalid"), (AT - 1, "Invalid")])
def test_a_time_stamp_saves_what_was_signed_before(revoked_at: float, verdict: str) -> None:
    found = Report(report.TRUSTED, "", serial="7", stamped_at=STAMPED)
    assert revoke(found, {"7": revoked_at}).verdict == verdict
    assert revoke(replace(found, stamped_at=None), {"7": revoked_at}).verdict == "Invalid"


def test_a_time_counts_only_where_its_stamp_is_trusted() -> None:
    def stamped(*codes: str) -> str | None:
        passed = {"activeManifest": {"success": [{"code": code} for code in codes]}}
        manifests = {"one": {"signature_info": {"time": STAMPED, "cert_serial_number": "7"}}}
        store = {"active_manifest": "one", "manifests": manifests, "validation_results": passed}
        return report.judge(store | {"validation_state": "Trusted"}, "image/png").stamped_at

    assert stamped("timeStamp.validated", "timeStamp.trusted") == STAMPED
    assert stamped("timeStamp.validated") is None
