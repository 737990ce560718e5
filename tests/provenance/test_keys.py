"""The development authority: what it makes, who may read it, when it renews itself."""

from __future__ import annotations

import datetime as dt
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from farm.config import Settings
from farm.db import connect
from farm.errors import BadInput, Unavailable
from farm.store import open_store
from provenance import certificates, keyfiles, keys
from provenance.notary import Notary
from provenance.signing import Signing
from provenance.verify import verify_bytes
from tests.provenance.test_verify import MANIFEST, encoded

PASSPHRASE = b"open sesame"


def test_made_on_first_use_and_the_same_afterwards(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no keys"):
        keys.load(tmp_path)
    with pytest.raises(Unavailable, match="no trust list"):
        keys.trust(tmp_path)
    made = keys.init(tmp_path)
    again = keys.init(tmp_path, "ed25519")
    assert (again.algorithm, again.chain, again.root) == ("es256", made.chain, made.root)
    assert again.prompt_salt(1) == made.prompt_salt(1) != made.prompt_salt(2)
    assert keys.trust(tmp_path) == made.root
    assert keys.init(tmp_path / "other").root != made.root


@pytest.mark.parametrize("algorithm", ["es256", "ed25519"])
def test_the_leaf_is_marked_and_short_lived(tmp_path: Path, algorithm: str) -> None:
    made = keys.init(tmp_path, algorithm)
    leaf, issuing = x509.load_pem_x509_certificates(made.chain.encode())
    assert leaf.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value == certificates.ORGANISATION
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == dt.timedelta(days=90)
    purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(purposes) == {certificates.C2PA_SIGNING, ExtendedKeyUsageOID.EMAIL_PROTECTION}
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert leaf.not_valid_after_utc < issuing.not_valid_after_utc
    leaf.verify_directly_issued_by(issuing)
    issuing.verify_directly_issued_by(x509.load_pem_x509_certificate(made.root.encode()))


def test_private_files_are_private_and_public_ones_hold_no_key(tmp_path: Path) -> None:
    keys.init(tmp_path)
    folder = tmp_path / "keys"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    public = b"".join(path.read_bytes() for path in (tmp_path / "trust").iterdir())
    assert b"PRIVATE" not in public


@pytest.mark.parametrize("name", ["", "leaf.pem", "salt.key"])
def test_keys_that_others_can_read_are_refused(tmp_path: Path, name: str) -> None:
    keys.init(tmp_path)
    (tmp_path / "keys" / name).chmod(0o755)
    with pytest.raises(Unavailable, match="can be read by others"):
        keys.load(tmp_path)


def test_unknown_algorithm_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="did you mean 'ed25519'"):
        keys.init(tmp_path, "ed25518")


def test_a_leaf_near_its_end_is_renewed_under_the_same_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = keys.init(tmp_path)
    before = Signing(old).sign(MANIFEST, encoded("png"), "image/png")
    monkeypatch.setitem(certificates.LIFE, "leaf", (90, 91))
    renewed = keys.init(tmp_path)
    assert renewed.chain != old.chain
    assert renewed.root == old.root
    after = Signing(renewed).sign(MANIFEST, encoded("png"), "image/png")
    for signed in (before, after):
        assert verify_bytes(signed.data, signed.mime, old.root).verdict == "Trusted"


def test_a_signer_that_runs_for_months_renews_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notary = Notary(
        Settings(home=tmp_path), connect("sqlite:///none.db", read_only=True), open_store(f"file://{tmp_path}/store")
    )
    first = notary.signing
    assert notary.signing is first
    monkeypatch.setitem(certificates.LIFE, "leaf", (90, 91))
    notary.keyring._take(keys.load(tmp_path))
    assert notary.signing.keys.chain != first.keys.chain
    assert notary.signing.keys.root == first.keys.root
    notary.close()


def test_processes_that_start_at_once_end_with_one_authority(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        roots = {made.root for made in pool.map(lambda _: keys.init(tmp_path), range(8))}
    assert len(roots) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keys", "trust"]


def test_with_a_passphrase_no_secret_lies_open(tmp_path: Path) -> None:
    made = keys.init(tmp_path, passphrase=PASSPHRASE)
    for path in (tmp_path / "keys").iterdir():
        data = path.read_bytes()
        assert b"BEGIN PRIVATE KEY" not in data
        assert made.salt_secret not in data
    again = keys.init(tmp_path, passphrase=PASSPHRASE)
    assert (again.chain, again.root, again.salt_secret) == (made.chain, made.root, made.salt_secret)
    assert again.sign_audit_head(1, "0" * 64)
    assert PASSPHRASE.decode() not in repr(again)


@pytest.mark.parametrize(("given", "words"), [(None, "is encrypted"), (b"another", "does not open")])
@pytest.mark.parametrize("first", ["leaf.pem", "salt.key"])
def test_without_the_right_passphrase_nothing_opens(
    tmp_path: Path, given: bytes | None, words: str, first: str
) -> None:
    keys.init(tmp_path, passphrase=PASSPHRASE)
    with pytest.raises(Unavailable, match=words):
        keys.load(tmp_path, given)
    with pytest.raises(Unavailable, match=words):
        (keyfiles.read_secret if first == "salt.key" else keyfiles.read_key)(tmp_path / "keys" / first, given)


def test_keys_that_lay_open_are_encrypted_when_a_passphrase_is_set(tmp_path: Path) -> None:
    before = keys.init(tmp_path)
    after = keys.init(tmp_path, passphrase=PASSPHRASE)
    assert (after.chain, after.root, after.salt_secret) == (before.chain, before.root, before.salt_secret)
    with pytest.raises(Unavailable, match="is encrypted"):
        keys.load(tmp_path)


def test_the_passphrase_comes_from_a_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "passphrase"
    assert keyfiles.passphrase_of(Settings()) is None
    assert keyfiles.passphrase_of(Settings(passphrase="open sesame")) == PASSPHRASE
    assert "sesame" not in repr(Settings(passphrase="open sesame"))
    with pytest.raises(Unavailable, match="see that it can be read"):
        keyfiles.passphrase_of(Settings(passphrase_file=str(file)))
    file.write_text("open sesame\n")
    assert keyfiles.passphrase_of(Settings(passphrase_file=str(file))) == PASSPHRASE
    with pytest.raises(BadInput, match="two passphrases"):
        keyfiles.passphrase_of(Settings(passphrase_file=str(file), passphrase="x"))
    file.write_text("\n")
    with pytest.raises(Unavailable, match="no passphrase"):
        keyfiles.passphrase_of(Settings(passphrase_file=str(file)))


def test_an_authority_made_before_there_were_time_stamps_gets_them(tmp_path: Path) -> None:
    before = keys.init(tmp_path)
    (tmp_path / "keys" / "stamps.pem").unlink()
    after = keys.init(tmp_path)
    assert after.chain == before.chain
    after.stamp_chain[0].verify_directly_issued_by(x509.load_pem_x509_certificate(after.root.encode()))
