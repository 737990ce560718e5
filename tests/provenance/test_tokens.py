"""A leaf in a PKCS#11 token: SoftHSM, where Debian's package softhsm2 and python-pkcs11 are installed."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from farm.config import Settings
from farm.errors import BadInput, Fault, Unavailable
from farm.job import Cause
from provenance import authority, keyfiles, keys, tokens
from provenance.keyring import Keyring
from provenance.verify import verify_bytes
from tests.provenance.test_authority import NAMES, certified
from tests.provenance.test_verify import MANIFEST, encoded

PIN = b"1234-5678"
PLACES = (os.environ.get("SOFTHSM2_MODULE", ""), "/usr/lib/softhsm/libsofthsm2.so")
MODULE = next((place for place in PLACES if place and Path(place).exists()), "")
TOOL = os.environ.get("SOFTHSM2_UTIL") or shutil.which("softhsm2-util")


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("pkcs11", reason="needs python-pkcs11: pip install 'renderfarm[pkcs11]'")
    if not MODULE or not TOOL:
        pytest.skip("needs SoftHSM: apt-get install softhsm2")
    folder = tmp_path_factory.mktemp("softhsm")
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder}/tokens\nlog.level = ERROR\n")
    os.environ["SOFTHSM2_CONF"] = str(folder / "softhsm2.conf")  # read once, when the module is loaded
    name = f"farm-{secrets.token_hex(4)}"
    pins = ["--pin", PIN.decode(), "--so-pin", PIN.decode()]
    subprocess.run([TOOL, "--module", MODULE, "--init-token", "--free", "--label", name, *pins], check=True, timeout=60)
    return f"pkcs11:token={name}?module-path={MODULE}"


@pytest.mark.parametrize("algorithm", ["es256", "ed25519"])
def test_a_key_in_a_token_signs_and_does_not_leave_it(token: str, algorithm: str) -> None:
    key = tokens.make(token, PIN, algorithm)
    again = tokens.find(key.uri, PIN)  # type: ignore[union-attr]
    assert again.public_key() == key.public_key()
    if isinstance(again, ec.EllipticCurvePrivateKey):
        public = again.public_key()
        public.verify(again.sign(b"data", ec.ECDSA(hashes.SHA256())), b"data", ec.ECDSA(hashes.SHA256()))
        with pytest.raises(InvalidSignature):
            public.verify(again.sign(b"other", ec.ECDSA(hashes.SHA256())), b"data", ec.ECDSA(hashes.SHA256()))
    else:
        assert isinstance(again, ed25519.Ed25519PrivateKey)
        again.public_key().verify(again.sign(b"data"), b"data")
    with pytest.raises(Unavailable, match="does not leave"):
        again.private_bytes(None, None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("algorithm", ["es256", "ed25519"])
def test_the_signer_signs_with_a_leaf_in_a_token(tmp_path: Path, token: str, algorithm: str) -> None:
    keys.init(tmp_path, passphrase=PIN)
    authority.rotate(tmp_path, PIN, algorithm=algorithm, token=token)
    assert b"PRIVATE" not in (tmp_path / "keys" / "leaf.pem").read_bytes()
    rests = {one.role: one.rests for one in authority.held(tmp_path) if one.state == "in use"}
    assert rests == {"leaf": "token", "issuing": "encrypted", "root": "encrypted", "stamps": "encrypted"}
    ring = Keyring(Settings(home=tmp_path, passphrase=PIN.decode()))
    first = ring.signing.keys.leaf
    for _ in range(2):
        signed = ring.signing.sign(MANIFEST, encoded("png"), "image/png")
        assert verify_bytes(signed.data, signed.mime, keys.trust(tmp_path)).verdict == "Trusted"
        authority.rotate(tmp_path, PIN, "issuing")
    assert ring.signing.keys.leaf != first
    assert keyfiles.rests(tmp_path / "keys" / "leaf.pem") == "token", "and the next one is made there too"
    ring.close()


def test_another_authority_certifies_a_key_in_a_token(tmp_path: Path, token: str) -> None:
    other = keys.init(tmp_path / "other")
    home = tmp_path / "home"
    keys.init(home, passphrase=PIN)
    answer = certified(authority.request(home, PIN, NAMES, token=token), tmp_path / "other")
    (tmp_path / "root.pem").write_text(other.root)
    authority.trust_also(home, PIN, keyfiles.certificates_in(other.root.encode()))
    assert authority.install(home, PIN, answer) == answer[0]
    assert keyfiles.rests(home / "keys" / "leaf.pem") == "token"


def test_a_token_that_fails_is_an_outage(tmp_path: Path, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keys.init(tmp_path, passphrase=PIN)
    authority.rotate(tmp_path, PIN, token=token)
    ring = Keyring(Settings(home=tmp_path, passphrase=PIN.decode()))
    import pkcs11

    class Gone:
        def sign(self, *_: object, **__: object) -> bytes:
            raise pkcs11.DeviceRemoved

    monkeypatch.setattr(ring.signing.keys.leaf_key, "_private", Gone())
    with pytest.raises(Fault, match="does not sign") as caught:
        ring.signing.sign(MANIFEST, encoded("png"), "image/png")
    assert caught.value.cause is Cause.SIGNER_FAILED
    ring.close()


def test_what_is_no_token_is_told(tmp_path: Path, token: str) -> None:
    with pytest.raises(Unavailable, match="token=nobody"):
        tokens.make(token.replace("token=farm", "token=nobody"), PIN, "es256")
    with pytest.raises(BadInput, match="the leaf alone"):
        authority.rotate(tmp_path, PIN, "root", token=token)


@pytest.mark.parametrize("uri", ["farm", "pkcs11:token=farm", "pkcs11:token=farm;object=leaf?module-path=x.so"])
def test_what_names_no_token_is_refused(uri: str) -> None:
    with pytest.raises(BadInput, match="names no token"):
        tokens.check(uri)
    assert tokens.check("pkcs11:token=farm?module-path=x.so")
