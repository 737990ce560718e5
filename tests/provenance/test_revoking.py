"""A certificate of which nobody should believe a signature any more, and what its files are then."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from farm.config import Settings
from provenance import authority, certificates, cose, keys, report
from provenance.container import manifest_store
from provenance.keyfiles import pem, read_key
from provenance.keyring import Keyring
from provenance.report import Report
from provenance.revoking import revoke
from provenance.signing import Parent, Signing
from provenance.verify import told, verify_bytes, verify_files
from tests.provenance.test_verify import EDIT, MANIFEST, encoded, sign_unread

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
    assert len(certificates.found_in(store)) == 2
    assert len(certificates.found_in(store[:at] + b"\x03" + store[at + 1 :])) == 1


def test_a_certificate_whose_number_is_no_number_of_one_is_passed_over(signed: tuple[bytes, bytes, str]) -> None:
    store = manifest_store(signed[0]) or b""
    leaf = certificates.found_in(store)[0]
    number = leaf.serial_number.to_bytes(20, "big").lstrip(b"\0")
    at = store.index(number)
    changed = store[:at] + bytes([number[0] | 0x80]) + store[at + 1 :]
    assert leaf.serial_number not in [one.serial_number for one in certificates.found_in(changed)]
    assert len(certificates.found_in(changed)) == len(certificates.found_in(store)) - 1


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


def test_a_revoked_issuing_certificate_counts_in_ancestors_too(tmp_path: Path) -> None:
    first = keys.init(tmp_path)
    made = Signing(first).sign(MANIFEST, encoded("png"), "image/png").data
    authority.rotate(tmp_path, None, "issuing")
    second = Signing(keys.init(tmp_path))
    data = second.sign(EDIT, encoded("png", 2), "image/png", Parent(made, "image/png", "the first")).data
    whole = verify_bytes(data, None, second.keys.trust)
    lost = str(x509.load_pem_x509_certificates(first.chain.encode())[1].serial_number)
    assert lost in whole.ancestors[0].serials
    assert lost not in whole.serials
    bad = verify_bytes(data, None, second.keys.trust, {lost: AT})
    assert (whole.verdict, bad.verdict, bad.codes) == ("Trusted", "SuspectAncestor", ("signingCredential.revoked",))


def test_a_stamp_by_a_revoked_certificate_shows_nothing(tmp_path: Path) -> None:
    """Whoever stole its key can date back whatever they like."""
    ring = Keyring(Settings(home=tmp_path))
    first = ring.signing.sign(MANIFEST, encoded("png"), "image/png").data
    data = ring.signing.sign(EDIT, encoded("png", 2), "image/png", Parent(first, "image/png", "the first")).data
    held = ring.signing.keys
    ring.close()
    leaf, late = str(held.leaf.serial_number), dt.datetime.now(dt.UTC).timestamp() + 3600
    root = str(x509.load_pem_x509_certificate(held.root.encode()).serial_number)
    found = verify_bytes(data, None, held.trust, {leaf: late})
    assert found.verdict == "Trusted"
    assert found.stamped_at is not None
    stamper = str(held.stamp_chain[0].serial_number)
    assert {stamper, root} <= set(found.stampers) & set(found.ancestors[0].stampers)
    bare = verify_bytes(data, None, held.trust, {stamper: late})
    assert (bare.verdict, bare.stamped_at, bare.ancestors[0].stamped_at) == ("Trusted", None, None)
    for lost in (stamper, root):
        bad = verify_bytes(data, None, held.trust, {leaf: late, lost: late})
        assert (bad.verdict, bad.ancestors[0].verdict) == ("Invalid", "Invalid")
    ended = replace(found, ends="2020-01-01T00:00:00+00:00")
    assert revoke(ended, {}).verdict == "Trusted"
    assert (revoke(ended, {stamper: 0.0}).verdict, revoke(ended, {stamper: 0.0}).codes) == (
        "Invalid",
        ("signingCredential.expired",),
    )


def test_a_serial_number_alone_makes_nobody_one_of_ours(tmp_path: Path) -> None:
    """A stranger's certificate with the number of our leaf, on an edit of our picture, which was changed before."""
    ours, theirs = keys.init(tmp_path / "ours"), keys.init(tmp_path / "theirs")
    made = bytearray(Signing(ours).sign(MANIFEST, encoded("png"), "image/png").data)
    made[-30] ^= 1
    issuer_key, issuers = read_key(tmp_path / "theirs" / "keys" / "issuing.pem", None)
    like = theirs.leaf
    copied = x509.CertificateBuilder(
        like.issuer, like.subject, like.public_key(), ours.leaf.serial_number, extensions=list(like.extensions)
    )
    lived = copied.not_valid_before(like.not_valid_before_utc).not_valid_after(like.not_valid_after_utc)
    false = lived.sign(issuer_key, certificates.digest_for(issuer_key))
    signing = Signing(replace(theirs, leaf=false, chain="".join(map(pem, [false, *issuers]))))
    data = sign_unread(signing, encoded("png", 2), "image/png", Parent(bytes(made), "image/png", "ours"))
    found = verify_bytes(data, None, ours.root)
    assert (found.verdict, found.serial) == ("SuspectAncestor", str(ours.leaf.serial_number))
    assert "signingCredential.untrusted" in found.codes
    assert found.chain[0].sha256 == false.fingerprint(hashes.SHA256()).hex()
    assert found.anchor is None
    assert told(found, [("this farm", ours.root)])["trusted_by"] is None


@given(st.binary(max_size=400), st.integers(0, 12000))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_lies_in_a_store_is_read_without_a_crash(
    signed: tuple[bytes, bytes, str], noise: bytes, at: int
) -> None:
    store = manifest_store(signed[1]) or b""
    whole = cose.signatures(store)
    assert [len(one.signers) for one in whole.values()] == [2, 2]
    assert len(cose.signatures(store[:at] + noise + store[at + len(noise) :])) <= 2
    assert cose.signatures(noise) == {}
    manifests = [body for kind, body in cose._boxes(next(cose._boxes(store))[1])][1:]
    again = b"".join((len(one) + 8).to_bytes(4, "big") + b"jumb" + one for one in [*manifests, manifests[0]])
    twice = (len(again) + 8).to_bytes(4, "big") + b"jumb" + again
    assert len(cose.signatures(twice)) == 1, "one that is there twice is nobody's"
