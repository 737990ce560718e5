"""The development authority: a root, an issuing CA, a 90-day leaf and an authority for time stamps, all of our own,
made on first use and marked as such.

    home/keys/    0700, for the signers alone; each file 0600
        root.pem  issuing.pem  leaf.pem  stamps.pem   private key, then certificate(s)
        audit.pem                          P-256 key that signs the heads of the audit chain, and nothing else
        salt.key                           secret behind the salts of the prompt commitments
        next.pem                           key that another authority is asked to certify
        past.pem                           certificates of the leaves before this one
        trusted.pem                        roots that an operator added to the trust list
        audit.head                         the last head of the audit chain that was signed, by whichever signer
        *.lock                             held by the one signer that changes what is beside it
    home/trust/   public: root.pem (the trust list a verifier is given), revoked.json (certificates that no longer
                  count), audit.pem (public key of the audit heads), audit.head (the last one signed)

With a passphrase every private key, and the salt, is encrypted where it rests. Without one the file mode guards them,
which is checked on every load, and that no other process has a reason to read them.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, utils

from farm.errors import BadInput, Unavailable, nearest
from provenance import heads, tokens
from provenance.certificates import PrivateKey, certificate, due
from provenance.keyfiles import (
    alone,
    certificates_in,
    pem,
    private_bytes,
    read_key,
    read_secret,
    rests,
    token_of,
    write_key,
    write_secret,
    write_whole,
)

MAKERS: dict[str, Callable[[], PrivateKey]] = {
    "es256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}
ROLES = ("leaf", "issuing", "root", "stamps")
LOCK = "keys.lock"
FOREIGN = b"Certified by another authority, which renews it.\n"
PUBLIC_PARTS = ("past.pem", "trusted.pem")  # of what lies with the keys: certificates alone


@dataclass(frozen=True, slots=True)
class Keys:
    algorithm: str
    chain: str  # leaf, then issuing CA; the root stays out
    root: str
    trust: str  # the root, and those that an operator added
    revoked: dict[str, float]
    leaf: x509.Certificate
    foreign: bool  # certified by another authority
    renew_at: dt.datetime
    stamp_chain: tuple[x509.Certificate, ...]
    leaf_key: PrivateKey = field(repr=False)
    stamp_key: ec.EllipticCurvePrivateKey = field(repr=False)
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
        return base64.b64encode(self.audit_key.sign(heads.words(seq, sha256), ec.ECDSA(hashes.SHA256()))).decode()


def init(home: Path, algorithm: str = "es256", passphrase: bytes | None = None) -> Keys:
    """Load the keys, making what is missing, renewing what is due, encrypting what lies open and should not.
    `algorithm` counts for a new authority only."""
    if algorithm not in MAKERS:
        raise BadInput(f"unknown algorithm {algorithm!r}", field="algorithm", fix=nearest(algorithm, MAKERS))
    if not (home / "keys").exists():
        _make_authority(home, MAKERS[algorithm], passphrase)
    with alone(home / "keys" / LOCK):
        if passphrase:
            _seal(home / "keys", passphrase)
        for role, above in (("issuing", "root"), ("leaf", "issuing"), ("stamps", "root")):
            if _is_due(home / "keys" / f"{role}.pem", role):
                make(home, role, above, passphrase)
        keys = load(home, passphrase)
        write_whole(home / "trust" / "root.pem", keys.trust.encode(), 0o644)
        write_whole(home / "trust" / "audit.pem", _public_pem(keys.audit_key), 0o644)
    return keys


def load(home: Path, passphrase: bytes | None = None) -> Keys:
    folder = home / "keys"
    if not folder.exists():
        raise Unavailable(f"there are no keys in {folder}", fix="start the signer, which makes them")
    leaf_key, chain = read_key(folder / "leaf.pem", passphrase)
    stamp_key, stamp_chain = _read_p256(folder / "stamps.pem", passphrase)
    audit_key, _ = _read_p256(folder / "audit.pem", passphrase)
    root = pem(certificates_in(private_bytes(folder / "root.pem"))[0])
    return Keys(
        algorithm=kind_of(leaf_key),
        chain="".join(map(pem, chain)),
        root=root,
        trust=root + "".join(map(pem, added(home))),
        revoked=revoked(home),
        leaf=chain[0],
        foreign=is_foreign(folder / "leaf.pem"),
        renew_at=due(chain[0], "leaf"),
        stamp_chain=tuple(stamp_chain),
        leaf_key=leaf_key,
        stamp_key=stamp_key,
        audit_key=audit_key,
        salt_secret=read_secret(folder / "salt.key", passphrase),
    )


def new_key(algorithm: str, token: str, passphrase: bytes | None) -> PrivateKey:
    return tokens.make(token, passphrase, algorithm) if token else MAKERS[algorithm]()


def _read_p256(path: Path, passphrase: bytes | None) -> tuple[ec.EllipticCurvePrivateKey, list[x509.Certificate]]:
    key, chain = read_key(path, passphrase)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Unavailable(f"{path} is not a P-256 key", fix="put back the one that was there")
    return key, chain


def make(
    home: Path, role: str, above: str, passphrase: bytes | None, algorithm: str = "", token: str = ""
) -> x509.Certificate:
    """A new key of this role, certified by the one above; the leaf that it replaces is remembered. It is made where
    that one was, or in this token."""
    folder, path = home / "keys", home / "keys" / f"{role}.pem"
    issuer_key, issuers = read_key(folder / f"{above}.pem", passphrase)
    before = certificates_in(private_bytes(path)) if path.exists() else []
    kind = algorithm or ("es256" if role == "stamps" else kind_of(before[0] if before else issuer_key))
    key = new_key(kind, token or token_of(path), passphrase)
    made = certificate(role, key.public_key(), issuers[0], issuer_key)
    if role == "leaf":
        remember(home, before[:1])
    write_key(path, key, [made, *issuers] if role == "leaf" else [made], passphrase)
    return made


def remember(home: Path, retired: list[x509.Certificate]) -> None:
    before = past(home)
    kept = "".join(map(pem, [*before, *(one for one in retired if one not in before)]))
    write_whole(home / "keys" / "past.pem", kept.encode(), 0o600)


def past(home: Path) -> list[x509.Certificate]:
    """The certificates of the leaves that signed before, oldest first."""
    path = home / "keys" / "past.pem"
    return certificates_in(private_bytes(path)) if path.exists() else []


def added(home: Path) -> list[x509.Certificate]:
    """What an operator trusts beside our own root."""
    path = home / "keys" / "trusted.pem"
    return certificates_in(private_bytes(path)) if path.exists() else []


def stamp_of(home: Path) -> tuple[tuple[int, int, int], ...]:
    """Changes with the keys: how a signer that runs sees that they were changed under it. File systems give the number
    of a file that is gone to the next one."""
    names = ("leaf.pem", "stamps.pem", "root.pem", "trusted.pem")
    return tuple(map(_seen, [*(home / "keys" / name for name in names), home / "trust" / "revoked.json"]))


def _seen(place: Path) -> tuple[int, int, int]:
    if not place.exists():
        return 0, 0, 0
    found = place.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def kind_of(holder: PrivateKey | x509.Certificate) -> str:
    public = holder.public_key()
    return "ed25519" if isinstance(public, ed25519.Ed25519PublicKey) else "es256"


def revoked(home: Path) -> dict[str, float]:
    """Serial numbers of certificates, each with the moment since which it no longer counts. Needs no access to keys."""
    return {one["serial"]: float(one["since"]) for one in revocations(home)}


def revocations(home: Path) -> list[dict[str, Any]]:
    path = home / "trust" / "revoked.json"
    try:
        return list(json.loads(path.read_text())) if path.exists() else []
    except ValueError as error:
        raise Unavailable(f"{path} is damaged: {error}", fix="put back the one that was there") from error


def trust(home: Path) -> str:
    """The farm's own trust list: its root, in PEM. Needs no access to the keys."""
    path = home / "trust" / "root.pem"
    if not path.exists():
        raise Unavailable(f"there is no trust list at {path}", fix="start the signer, which makes it")
    return path.read_text()


def _make_authority(home: Path, make: Callable[[], PrivateKey], passphrase: bytes | None) -> None:
    """Filled aside and renamed, so that two processes starting at once end with one authority."""
    home.mkdir(0o700, parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix="keys.", dir=home))
    key = make()
    write_key(aside / "root.pem", key, [certificate("root", key.public_key(), None, key)], passphrase)
    write_key(aside / "audit.pem", ec.generate_private_key(ec.SECP256R1()), [], passphrase)
    write_secret(aside / "salt.key", os.urandom(32), passphrase)
    try:
        aside.rename(home / "keys")
    except OSError:
        shutil.rmtree(aside)
        if not (home / "keys").exists():
            raise


def _is_due(path: Path, role: str) -> bool:
    """Missing or near its end. A leaf that another authority certified is theirs to renew."""
    if not path.exists():
        return True
    made = certificates_in(private_bytes(path))[0]
    return not is_foreign(path) and due(made, role) <= dt.datetime.now(dt.UTC)


def is_foreign(leaf: Path) -> bool:
    return private_bytes(leaf).startswith(FOREIGN)


def _seal(folder: Path, passphrase: bytes) -> None:
    """Encrypt what lay open until a passphrase was set."""
    for path in [*folder.glob("*.pem"), folder / "salt.key"]:
        if path.name in PUBLIC_PARTS or rests(path) != "open":
            continue
        if path.suffix == ".pem":
            note = FOREIGN if is_foreign(path) else b""
            write_key(path, *read_key(path, None), passphrase, note)
        else:
            write_secret(path, read_secret(path, None), passphrase)


def _public_pem(key: PrivateKey) -> bytes:
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, kind)
