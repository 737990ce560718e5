"""Files that only the holder of a private key can open: X25519 with a key of that file alone, HKDF-SHA256 and
ChaCha20-Poly1305.

home/quarantine/private.pem   0600, in a folder of 0700: the operator's, who may keep it elsewhere
home/trust/quarantine.pem     its public half, which is all that the farm needs to write
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from farm.config import Settings
from farm.errors import BadInput, Unavailable

KIND = b"farm quarantine 1\n"  # then 32 bytes of public key, and the ciphertext
POINT = 32
NONCE = bytes(12)  # each file has a key of its own, used once


def private_path(home: Path) -> Path:
    return home / "quarantine" / "private.pem"


def public_path(home: Path) -> Path:
    return home / "trust" / "quarantine.pem"


def chosen(settings: Settings) -> Path:
    """The public half for which the farm seals."""
    return Path(settings.quarantine_key) if settings.quarantine_key else public_path(settings.home)


def make_keys(home: Path, passphrase: bytes | None = None) -> None:
    """Unless they are there, or the private half was taken elsewhere."""
    if public_path(home).exists():
        return
    key = X25519PrivateKey.generate()
    how = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)
    private_path(home).parent.mkdir(0o700, parents=True, exist_ok=True)
    _write(private_path(home), secret, 0o600)
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    public_path(home).parent.mkdir(parents=True, exist_ok=True)
    _write(public_path(home), key.public_key().public_bytes(serialization.Encoding.PEM, kind), 0o644)


def _write(path: Path, data: bytes, mode: int) -> None:
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def read_public(path: Path) -> X25519PublicKey:
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except OSError as error:
        fix = "`farm up` makes one; or FARM_QUARANTINE_KEY names one"
        raise Unavailable(f"{path}: {error.strerror}", field="quarantine_key", fix=fix) from error
    except ValueError as error:
        raise _no_key(path, "public") from error
    if not isinstance(key, X25519PublicKey):
        raise _no_key(path, "public")
    return key


def read_private(path: Path, passphrase: bytes | None = None) -> X25519PrivateKey:
    data = path.read_bytes()
    try:
        key = serialization.load_pem_private_key(data, passphrase if b"ENCRYPTED" in data else None)
    except TypeError as error:
        raise Unavailable(f"{path} is encrypted", fix="set FARM_PASSPHRASE_FILE, or FARM_PASSPHRASE") from error
    except ValueError as error:
        raise _no_key(path, "private") from error
    if not isinstance(key, X25519PrivateKey):
        raise _no_key(path, "private")
    return key


def _no_key(path: Path, half: str) -> BadInput:
    fix = "give one that `openssl genpkey -algorithm X25519` has made, in PEM, with its own passphrase"
    return BadInput(f"{path} holds no {half} X25519 key that opens", field="key", fix=fix)


def seal(public: X25519PublicKey, data: bytes, about: str) -> bytes:
    """`about` is not in the file, and must be said again to open it."""
    once = X25519PrivateKey.generate()
    mine = once.public_key().public_bytes_raw()
    key = _key(once.exchange(public), mine, public.public_bytes_raw())
    return KIND + mine + ChaCha20Poly1305(key).encrypt(NONCE, data, about.encode())


def unseal(private: X25519PrivateKey, sealed: bytes, about: str) -> bytes:
    theirs, body = sealed[len(KIND) :][:POINT], sealed[len(KIND) + POINT :]
    if not sealed.startswith(KIND) or len(theirs) < POINT:
        raise BadInput("this is no file of the quarantine", field="FILE")
    shared = private.exchange(X25519PublicKey.from_public_bytes(theirs))
    key = _key(shared, theirs, private.public_key().public_bytes_raw())
    try:
        return ChaCha20Poly1305(key).decrypt(NONCE, body, about.encode())
    except InvalidTag as error:
        says = "it does not open with this key, or was changed since"
        raise BadInput(says, field="key", fix="give the private half of the key that was in use then") from error


def _key(shared: bytes, once: bytes, public: bytes) -> bytes:
    return HKDF(hashes.SHA256(), length=32, salt=once + public, info=KIND).derive(shared)
