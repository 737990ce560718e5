"""A leaf in a PKCS#11 token: SoftHSM, where Debian's package softhsm2 and python-pkcs11 are installed; its outages also
without."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from types import SimpleNamespace as Names

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, utils

from farm.config import Settings
from farm.errors import BadInput, Fault, Unavailable
from farm.job import Cause
from provenance import authority, certificates, keyfiles, keys, tokens
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


def test_a_token_that_fails_is_an_outage_until_it_is_back(tmp_path: Path, token: str) -> None:
    keys.init(tmp_path, passphrase=PIN)
    authority.rotate(tmp_path, PIN, token=token)
    ring = Keyring(Settings(home=tmp_path, passphrase=PIN.decode()))
    assert ring.health()["state"] == "ready"
    parts = tokens._parts(token)
    tokens._session(parts["module"], parts["token"], PIN).close()  # as if it had been pulled out
    with pytest.raises(Fault, match="does not sign") as caught:
        ring.signing.sign(MANIFEST, encoded("png"), "image/png")
    assert caught.value.cause is Cause.SIGNER_FAILED
    assert ring.signing.sign(MANIFEST, encoded("png"), "image/png").data
    ring.close()


class Faked(ModuleType):
    """As much of python-pkcs11 as a key asks, with sessions that a token may forget."""

    class PKCS11Error(Exception):
        pass

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        super().__init__("pkcs11")
        self.key, self.opened, self.gone = key, list[Faked.Session](), False
        self.ObjectClass, self.Attribute = Names(PRIVATE_KEY="private", PUBLIC_KEY="public"), Names(EC_POINT="point")
        self.KeyType, self.Mechanism = Names(EC="ec"), Names(ECDSA="ecdsa")

    def lib(self, module: str) -> Faked:
        return self

    def get_token(self, token_label: str) -> Faked:
        return self

    def open(self, user_pin: str, rw: bool) -> Faked.Session:
        if self.gone or not all(one.closed for one in self.opened):
            raise self.PKCS11Error("no token there" if self.gone else "logged in already")
        self.opened.append(Faked.Session(self))
        return self.opened[-1]

    class Session:
        key_type = "ec"

        def __init__(self, token: Faked) -> None:
            self.token, self.ended, self.closed = token, False, False

        def close(self) -> None:
            self.closed = True

        def get_key(self, object_class: str, label: str) -> Faked.Session:
            return self

        def __getitem__(self, attribute: str) -> bytes:
            form = serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
            return b"\x04A" + self.token.key.public_key().public_bytes(*form)

        def sign(self, digest: bytes, mechanism: str) -> bytes:
            if self.ended or self.token.gone:
                raise self.token.PKCS11Error("the session is not valid")
            made = self.token.key.sign(digest, ec.ECDSA(utils.Prehashed(hashes.SHA256())))
            return b"".join(one.to_bytes(32, "big") for one in utils.decode_dss_signature(made))


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faked]:
    made = Faked(ec.generate_private_key(ec.SECP256R1()))
    monkeypatch.setitem(sys.modules, "pkcs11", made)
    tokens._sessions.clear()
    yield made
    tokens._sessions.clear()


def test_a_session_that_its_token_forgot_is_opened_anew(faked: Faked) -> None:
    key = tokens.find("pkcs11:token=farm;object=leaf?module-path=x.so", PIN)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    way = ec.ECDSA(hashes.SHA256())
    key.public_key().verify(key.sign(b"data", way), b"data", way)
    faked.opened[0].ended = True
    with pytest.raises(Unavailable, match="not valid"):
        key.sign(b"data", way)
    key.public_key().verify(key.sign(b"data", way), b"data", way)
    assert len(faked.opened) == 2


def test_a_signer_whose_token_is_gone_is_not_well(faked: Faked, tmp_path: Path) -> None:
    """Else jobs would be drawn again and again, and never signed."""
    held = keys.init(tmp_path)
    key = tokens.find("pkcs11:token=farm;object=leaf?module-path=x.so", PIN)
    issuer_key, issuers = keyfiles.read_key(tmp_path / "keys" / "issuing.pem", None)
    leaf = certificates.certificate("leaf", faked.key.public_key(), issuers[0], issuer_key)
    ring = Keyring(Settings(home=tmp_path, timestamps="off"))
    chain = "".join(map(keyfiles.pem, [leaf, *issuers]))
    ring._take(replace(held, leaf=leaf, chain=chain, leaf_key=key))
    assert ring.signing.sign(MANIFEST, encoded("png"), "image/png").data
    faked.gone = True
    assert ring.health()["state"] == "ready", "it has signed a moment ago"
    for ask in (lambda: ring.signing.sign(MANIFEST, encoded("png"), "image/png"), ring.health, ring.health):
        with pytest.raises(Fault, match="does not sign") as caught:
            ask()
        assert caught.value.cause is Cause.SIGNER_FAILED
    faked.gone = False
    assert ring.health()["state"] == "ready"
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
