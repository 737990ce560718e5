"""The development authority: a root, an issuing CA and a 90-day leaf of our own, made on first use and marked as
such.

    home/keys/    0700, for the signer alone; each file 0600
        root.pem  issuing.pem  leaf.pem    private key, then certificate(s)
        audit.pem                          P-256 key that signs the heads of the audit chain, and nothing else
        salt.key                           secret behind the salts of the prompt commitments
        audit.head  audit.head.lock        the last head of the audit chain that was signed, by whichever signer
    home/trust/   public: root.pem (the trust list a verifier is given), audit.pem (public key of the audit heads),
                  audit.head (the last one signed)

The private keys rest unencrypted: a passphrase read from the same disk by the same user would guard nothing. What
guards them is the file mode, which is checked on every load, and that no other process has a reason to read them.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, utils

from farm.errors import BadInput, Unavailable, nearest
from provenance.certificates import PrivateKey, certificate, due

MAKERS: dict[str, Callable[[], PrivateKey]] = {
    "es256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}


@dataclass(frozen=True, slots=True)
class Keys:
    algorithm: str
    chain: str  # leaf, then issuing CA; the root stays out
    root: str
    renew_at: dt.datetime
    leaf_key: PrivateKey = field(repr=False)
    audit_key: ec.EllipticCurvePrivateKey = field(repr=False)
    salt_secret: bytes = field(repr=False)

    def sign(self, data: bytes) -> bytes:
        """What COSE wants: r and s side by side for ES256, the plain signature for Ed25519."""
        if isinstance(self.leaf_key, ed25519.Ed25519PrivateKey):
            return self.leaf_key.sign(data)
        r, s = utils.decode_dss_signature(self.leaf_key.sign(data, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    def prompt_salt(self, job_id: int) -> bytes:
        """The salt of one job's prompt commitment: the same each time, and not to be guessed without the secret."""
        return hmac.digest(self.salt_secret, f"prompt salt of job {job_id}".encode(), hashlib.sha256)

    def sign_audit_head(self, seq: int, sha256: str) -> str:
        return base64.b64encode(self.audit_key.sign(_audit_head(seq, sha256), ec.ECDSA(hashes.SHA256()))).decode()


def init(home: Path, algorithm: str = "es256") -> Keys:
    """Load the keys, making what is missing and renewing what is due. `algorithm` counts for a new authority only."""
    if algorithm not in MAKERS:
        raise BadInput(f"unknown algorithm {algorithm!r}", field="algorithm", fix=nearest(algorithm, MAKERS))
    if not (home / "keys").exists():
        _make_authority(home, MAKERS[algorithm])
    _renew(home / "keys")
    keys = load(home)
    write_whole(home / "trust" / "root.pem", keys.root.encode(), 0o644)
    write_whole(home / "trust" / "audit.pem", _public_pem(keys.audit_key), 0o644)
    return keys


def load(home: Path) -> Keys:
    folder = home / "keys"
    if not folder.exists():
        raise Unavailable(f"there are no keys in {folder}", fix="start the signer, which makes them")
    leaf_key, chain = _read(folder / "leaf.pem")
    audit_key, _ = _read(folder / "audit.pem")
    if not isinstance(audit_key, ec.EllipticCurvePrivateKey):
        raise Unavailable(f"{folder / 'audit.pem'} is not a P-256 key", fix="put back the one that was there")
    return Keys(
        algorithm="ed25519" if isinstance(leaf_key, ed25519.Ed25519PrivateKey) else "es256",
        chain="".join(_pem(one) for one in chain),
        root=_pem(_read(folder / "root.pem")[1][0]),
        renew_at=due(chain[0], "leaf"),
        leaf_key=leaf_key,
        audit_key=audit_key,
        salt_secret=_private_bytes(folder / "salt.key"),
    )


def trust(home: Path) -> str:
    """The farm's own trust list: its root, in PEM. Needs no access to the keys."""
    path = home / "trust" / "root.pem"
    if not path.exists():
        raise Unavailable(f"there is no trust list at {path}", fix="start the signer, which makes it")
    return path.read_text()


def audit_trust(home: Path) -> str:
    """The public key of the audit heads, in PEM."""
    path = home / "trust" / "audit.pem"
    if not path.exists():
        raise Unavailable(
            f"there is no public key of the audit heads at {path}", fix="start the signer, which makes it"
        )
    return path.read_text()


def audit_verifier(public_pem: str) -> Callable[[int, str, str], bool]:
    """What checks the heads that `Keys.sign_audit_head` signed: number, hash, signature."""
    try:
        public = serialization.load_pem_public_key(public_pem.encode())
    except ValueError as error:
        raise BadInput(
            "this is no public key in PEM", field="audit.pem", fix="give the farm's trust/audit.pem"
        ) from error
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise BadInput("the audit key is not an elliptic curve key", field="audit.pem")

    def is_ours(seq: int, sha256: str, signature: str) -> bool:
        try:
            said = base64.b64decode(signature, validate=True)
            public.verify(said, _audit_head(seq, sha256), ec.ECDSA(hashes.SHA256()))
        except (InvalidSignature, ValueError):
            return False
        return True

    return is_ours


def _audit_head(seq: int, sha256: str) -> bytes:
    return f"farm audit head\n{seq}\n{sha256}\n".encode()


def _make_authority(home: Path, make: Callable[[], PrivateKey]) -> None:
    """Filled aside and renamed, so that two processes starting at once end with one authority."""
    home.mkdir(0o700, parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix="keys.", dir=home))
    root_key = make()
    root = certificate("root", root_key, None, root_key)
    write_whole(aside / "root.pem", _key_pem(root_key) + _pem(root).encode(), 0o600)
    write_whole(aside / "audit.pem", _key_pem(ec.generate_private_key(ec.SECP256R1())), 0o600)
    write_whole(aside / "salt.key", os.urandom(32), 0o600)
    try:
        aside.rename(home / "keys")
    except OSError:
        shutil.rmtree(aside)
        if not (home / "keys").exists():
            raise


def _renew(folder: Path) -> None:
    """Make the issuing CA and the leaf where they are missing or near their end."""
    for role, above in (("issuing", "root"), ("leaf", "issuing")):
        path = folder / f"{role}.pem"
        issuer_key, issuers = _read(folder / f"{above}.pem")
        if path.exists() and due(_read(path)[1][0], role) > dt.datetime.now(dt.UTC):
            continue
        key = MAKERS["ed25519" if isinstance(issuer_key, ed25519.Ed25519PrivateKey) else "es256"]()
        made = _pem(certificate(role, key, issuers[0], issuer_key))
        chain = made + _pem(issuers[0]) if role == "leaf" else made
        write_whole(path, _key_pem(key) + chain.encode(), 0o600)


def _read(path: Path) -> tuple[PrivateKey, list[x509.Certificate]]:
    data = _private_bytes(path)
    key = serialization.load_pem_private_key(data, None)
    if not isinstance(key, PrivateKey):
        raise Unavailable(f"{path} holds a key of another kind", fix="ES256 and Ed25519 are known")
    return key, x509.load_pem_x509_certificates(data) if b"BEGIN CERTIFICATE" in data else []


def _private_bytes(path: Path) -> bytes:
    for place in (path.parent, path):
        if place.stat().st_mode & 0o077:
            raise Unavailable(f"{place} can be read by others", fix=f"chmod go-rwx {place}, and think of new keys")
    return path.read_bytes()


def write_whole(path: Path, data: bytes, mode: int) -> None:
    """Whole or not at all, and never readable by others in between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(prefix=path.name, dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        os.fchmod(handle, mode)
        file.write(data)
        file.flush()
        os.fsync(handle)
    Path(aside).replace(path)


def _pem(made: x509.Certificate) -> str:
    return made.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: PrivateKey) -> bytes:
    kind = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption())


def _public_pem(key: PrivateKey) -> bytes:
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, kind)
