"""What an operator does with the keys, while signers use them."""

from __future__ import annotations

import datetime as dt
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from farm.config import Settings
from farm.errors import BadInput, Conflict, Fault
from farm.job import Cause
from farm.ports import Signed
from provenance import authority, certificates, keys
from provenance.client import SignerClient
from provenance.keyfiles import read_key
from provenance.keyring import Keyring
from provenance.verify import verify_bytes
from tests.provenance.conftest import open_farm, picture, start_signer
from tests.provenance.test_verify import MANIFEST, encoded

NAMES = {"country": "ZZ", "organization": "Us", "name": "our signer"}


@pytest.fixture
def ring(tmp_path: Path) -> Keyring:
    """Without time stamps, which have tests of their own."""
    return Keyring(Settings(home=tmp_path, timestamps="off"))


def sign(ring: Keyring) -> Signed:
    return ring.signing.sign(MANIFEST, encoded("png"), "image/png")


def verdict(signed: Signed, home: Path) -> str:
    return verify_bytes(signed.data, signed.mime, keys.trust(home), keys.revoked(home)).verdict


def serial(ring: Keyring) -> str:
    return str(ring.signing.keys.leaf.serial_number)


@pytest.mark.parametrize("role", authority.ROTATED)
@pytest.mark.parametrize("passphrase", ["", "open sesame"])
def test_a_rotated_key_signs_next_and_what_was_signed_stays_trusted(tmp_path: Path, role: str, passphrase: str) -> None:
    ring = Keyring(Settings(home=tmp_path, passphrase=passphrase))
    before, first, stamper = sign(ring), serial(ring), ring.signing.keys.stamp_chain[0]
    made = authority.rotate(tmp_path, passphrase.encode() or None, role)
    after = sign(ring)
    stampers = verify_bytes(after.data, after.mime, keys.trust(tmp_path)).stampers
    assert (str(stamper.serial_number) in stampers) is (role not in ("stamps", "root"))
    assert (str(made.serial_number) in stampers) is (role in ("stamps", "root"))
    assert [verdict(one, tmp_path) for one in (before, after)] == ["Trusted", "Trusted"]
    held = {one.serial: one for one in authority.held(tmp_path)}
    assert (held[str(made.serial_number)].role, held[str(made.serial_number)].state) == (role, "in use")
    assert {one.rests for one in held.values() if one.state == "in use"} == {"encrypted" if passphrase else "open"}
    assert held[first].state == ("in use" if role == "stamps" else "past")
    assert (serial(ring) == first) is (role == "stamps")
    ring.close()


def test_a_file_that_takes_the_place_and_the_number_of_another_is_seen(tmp_path: Path) -> None:
    keys.init(tmp_path)
    for name in ("leaf.pem", "stamps.pem", "root.pem"):
        path = tmp_path / "keys" / name
        before, was = keys.stamp_of(tmp_path), path.stat()
        path.write_bytes(path.read_bytes() + b"\n")
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
        assert path.stat().st_ino == was.st_ino
        longer = keys.stamp_of(tmp_path)
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns + 1))
        assert len({before, longer, keys.stamp_of(tmp_path)}) == 3, name


def test_a_leaf_may_change_its_algorithm(tmp_path: Path, ring: Keyring) -> None:
    before = sign(ring)
    authority.rotate(tmp_path, None, algorithm="ed25519")
    assert ring.signing.keys.algorithm == "ed25519"
    assert [verdict(one, tmp_path) for one in (before, sign(ring))] == ["Trusted", "Trusted"]
    authority.rotate(tmp_path, None)
    assert ring.signing.keys.algorithm == "ed25519", "as before"


def test_what_cannot_be_rotated_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="did you mean 'leaf'"):
        authority.rotate(tmp_path, None, "leav")
    with pytest.raises(BadInput, match="did you mean 'ed25519'"):
        authority.rotate(tmp_path, None, algorithm="ed2551")
    with pytest.raises(BadInput, match="the others keep theirs"):
        authority.rotate(tmp_path, None, "root", "es256")


def test_rotation_while_two_signers_work_loses_nothing(tmp_path: Path) -> None:
    running = [start_signer(tmp_path), start_signer(tmp_path, str(tmp_path / "second.sock"))]
    farm, frame, signed, over = open_farm(tmp_path, running[0][1]), picture(1), list[Signed](), threading.Event()
    job = farm.job()
    farm.judge(job, frame)

    def work(signer: SignerClient) -> None:
        while not over.is_set():
            signed.append(replace(farm, signer=signer).sign(job, frame))

    def wait_for_more(count: int) -> None:
        until = len(signed) + count
        while len(signed) < until and not any(one.done() for one in asked):
            time.sleep(0.01)

    try:
        with ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(work, client) for _, client in running]
            for role in ("leaf", "issuing", "root"):
                wait_for_more(3)
                authority.rotate(tmp_path, None, role)
            wait_for_more(3)  # more than were under way: one of them began after the last change
            over.set()
            assert [one.result() for one in asked] == [None, None], "nothing was refused or failed"
    finally:
        over.set()
        for process, _ in running:
            process.kill()
            process.wait()
        farm.engine.dispose()
    found = [verify_bytes(one.data, one.mime, keys.trust(tmp_path)) for one in signed]
    assert {one.verdict for one in found} == {"Trusted"}
    assert len({one.serial for one in found}) == 4
    assert all(one.stamped_at for one in found)


def test_what_a_revoked_certificate_signed_no_longer_counts(tmp_path: Path, ring: Keyring) -> None:
    before, first = sign(ring), serial(ring)
    assert authority.revoke(tmp_path, None, first, 0.0, "its key was lost")
    assert verdict(before, tmp_path) == "Invalid"
    assert verdict(sign(ring), tmp_path) == "Trusted", "another key took its place"
    assert serial(ring) != first
    assert {one.serial: one.state for one in authority.held(tmp_path)}[first] == "revoked"
    with pytest.raises(Conflict, match="already"):
        authority.revoke(tmp_path, None, first, 0.0, "again")


def test_a_time_stamp_from_before_keeps_what_a_revoked_certificate_signed(tmp_path: Path) -> None:
    stamped = Keyring(Settings(home=tmp_path))
    before, first = sign(stamped), serial(stamped)
    soon = dt.datetime.now(dt.UTC).timestamp() + 1
    authority.revoke(tmp_path, None, first, soon, "its key was lost")
    assert verdict(before, tmp_path) == "Trusted"
    late = verify_bytes(before.data, before.mime, keys.trust(tmp_path), {first: soon - 3600})
    assert late.verdict == "Invalid"
    stamped.close()


def test_an_issuing_certificate_is_revoked_with_all_under_it(tmp_path: Path, ring: Keyring) -> None:
    before = sign(ring)
    issuing = next(one.serial for one in authority.held(tmp_path) if one.role == "issuing")
    authority.revoke(tmp_path, None, issuing, 0.0, "its key was lost")
    assert [verdict(one, tmp_path) for one in (before, sign(ring))] == ["Invalid", "Trusted"]


def test_a_strangers_certificate_may_be_revoked(tmp_path: Path, ring: Keyring) -> None:
    assert not authority.revoke(tmp_path, None, "12345", 0.0, "another machine's")
    assert keys.revoked(tmp_path) == {"12345": 0.0}
    assert verdict(sign(ring), tmp_path) == "Trusted"


def in_use(home: Path, role: str) -> str:
    return next(one.serial for one in authority.held(home) if (one.role, one.state) == (role, "in use"))


@pytest.mark.parametrize("rotated", [False, True])
def test_a_stolen_root_comes_off_the_trust_list(tmp_path: Path, rotated: bool) -> None:
    ring = Keyring(Settings(home=tmp_path))
    before, lost, old = sign(ring), in_use(tmp_path, "root"), keys.trust(tmp_path)
    with pytest.raises(BadInput, match="any date"):
        authority.revoke(tmp_path, None, lost, 1.0, "stolen")
    if rotated:
        authority.rotate(tmp_path, None, "root")
        assert verdict(before, tmp_path) == "Trusted", "rotated, it stays on the list"
    assert authority.revoke(tmp_path, None, lost, 0.0, "stolen")
    assert lost not in [
        str(one.serial_number) for one in x509.load_pem_x509_certificates(keys.trust(tmp_path).encode())
    ]
    assert verdict(before, tmp_path) == "Valid", "of a signer that nobody knows"
    assert verify_bytes(before.data, before.mime, old, keys.revoked(tmp_path)).verdict == "Invalid"
    after = sign(ring)
    assert verdict(after, tmp_path) == "Trusted"
    assert verify_bytes(after.data, after.mime, keys.trust(tmp_path)).stamped_at
    ring.close()


def test_a_stolen_stamp_key_dates_nothing_back(tmp_path: Path) -> None:
    ring = Keyring(Settings(home=tmp_path))
    before, lost, first = sign(ring), in_use(tmp_path, "stamps"), serial(ring)
    assert authority.revoke(tmp_path, None, lost, 0.0, "stolen")
    after, trust = sign(ring), keys.trust(tmp_path)
    stamped = [verify_bytes(one.data, one.mime, trust, keys.revoked(tmp_path)).stamped_at for one in (before, after)]
    assert stamped[0] is None
    assert stamped[1] is not None
    assert [verdict(one, tmp_path) for one in (before, after)] == ["Trusted", "Trusted"]
    soon = dt.datetime.now(dt.UTC).timestamp() + 3600
    authority.revoke(tmp_path, None, first, soon, "stolen with it")
    assert [verdict(one, tmp_path) for one in (before, after)] == ["Invalid", "Trusted"]
    ring.close()


def test_a_root_is_trusted_no_longer(tmp_path: Path, ring: Keyring) -> None:
    other = keys.init(tmp_path / "other")
    (root,) = x509.load_pem_x509_certificates(other.root.encode())
    number = str(root.serial_number)
    with pytest.raises(BadInput, match="no root with the serial"):
        authority.trust_no_longer(tmp_path, None, number)
    with pytest.raises(Conflict, match="in use"):
        authority.trust_no_longer(tmp_path, None, in_use(tmp_path, "root"))
    authority.trust_also(tmp_path, None, [root])
    assert authority.trust_no_longer(tmp_path, None, number) == root
    assert keys.trust(tmp_path) == ring.signing.keys.root == ring.signing.keys.trust
    authority.trust_also(tmp_path, None, [root])
    authority.install(tmp_path, None, certified(authority.request(tmp_path, None, NAMES), tmp_path / "other"))
    for ask in (
        lambda: authority.trust_no_longer(tmp_path, None, number),
        lambda: authority.revoke(tmp_path, None, number, 0.0, "stolen"),
    ):
        with pytest.raises(Conflict, match="signer's own certificate"):
            ask()
    leaf = serial(ring)
    assert authority.revoke(tmp_path, None, in_use(tmp_path, "root"), 0.0, "stolen"), "the other's leaf stays"
    assert serial(ring) == leaf
    assert verdict(sign(ring), tmp_path) == "Trusted"


def certified(request: str, home: Path) -> list[x509.Certificate]:
    """What another authority answers."""
    asked = x509.load_pem_x509_csr(request.encode())
    assert asked.is_signature_valid
    issuer_key, issuers = read_key(home / "keys" / "issuing.pem", None)
    public = asked.public_key()
    assert isinstance(public, certificates.PublicKey)
    return [certificates.certificate("leaf", public, issuers[0], issuer_key), *issuers]


@pytest.mark.parametrize("algorithm", ["es256", "ed25519"])
def test_another_authority_certifies_the_signer(tmp_path: Path, ring: Keyring, algorithm: str) -> None:
    other = keys.init(tmp_path / "other")
    with pytest.raises(Conflict, match="no certificate was asked for"):
        authority.install(tmp_path, None, [ring.signing.keys.leaf])
    before, first = sign(ring), serial(ring)
    answer = certified(authority.request(tmp_path, None, NAMES, algorithm), tmp_path / "other")
    assert serial(ring) == first, "the one in use stays until then"
    with pytest.raises(BadInput, match="not for the key"):
        authority.install(tmp_path, None, answer[1:])
    roots = x509.load_pem_x509_certificates(other.root.encode())
    with pytest.raises(BadInput, match="not Trusted"):
        authority.install(tmp_path, None, answer)
    assert serial(ring) == first
    authority.trust_also(tmp_path, None, roots)
    assert authority.install(tmp_path, None, [*answer, *roots]) == answer[0]
    after = sign(ring)
    assert serial(ring) == str(answer[0].serial_number)
    assert [verdict(one, tmp_path) for one in (before, after)] == ["Trusted", "Trusted"]
    assert verify_bytes(after.data, after.mime, other.root).verdict == "Trusted"
    with pytest.raises(Conflict, match="another authority's"):
        authority.rotate(tmp_path, None)
    with pytest.raises(Conflict, match="another authority's"):
        authority.revoke(tmp_path, None, serial(ring), 0.0, "lost")


def test_a_certificate_of_another_authority_is_theirs_to_renew(
    tmp_path: Path, ring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = keys.init(tmp_path / "other")
    authority.trust_also(tmp_path, None, x509.load_pem_x509_certificates(other.root.encode()))
    answer = certified(authority.request(tmp_path, None, NAMES), tmp_path / "other")
    authority.install(tmp_path, None, answer)
    monkeypatch.setitem(certificates.LIFE, "leaf", (90, 91))
    assert keys.init(tmp_path).leaf == answer[0]
    assert keys.init(tmp_path, passphrase=b"open sesame").leaf == answer[0]
    ended = x509.CertificateBuilder(
        answer[0].issuer, answer[0].subject, answer[0].public_key(), 1, extensions=list(answer[0].extensions)
    )
    past = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    issuer_key, _ = read_key(tmp_path / "other" / "keys" / "issuing.pem", None)
    leaf = (
        ended.not_valid_before(past - dt.timedelta(days=1))
        .not_valid_after(past)
        .sign(issuer_key, certificates.digest_for(issuer_key))
    )
    ring._seen = keys.stamp_of(tmp_path)  # as if these had always been the keys
    ring._take(replace(keys.load(tmp_path, b"open sesame"), leaf=leaf))
    with pytest.raises(Fault, match="has ended") as caught:
        sign(ring)
    assert caught.value.cause is Cause.SIGNER_FAILED, "an outage: no job pays for it"


def test_only_a_root_is_trusted_beside_our_own(tmp_path: Path) -> None:
    other = keys.init(tmp_path / "other")
    for one in (*x509.load_pem_x509_certificates(other.chain.encode()),):
        with pytest.raises(BadInput, match="is no root"):
            authority.trust_also(tmp_path, None, [one])
    roots = x509.load_pem_x509_certificates(other.root.encode())
    for _ in range(2):
        authority.trust_also(tmp_path, None, roots)
    found = authority.trust_list(tmp_path)
    assert len(found["roots"]) == 2
    assert found["pem"] == keys.init(tmp_path).root + other.root
