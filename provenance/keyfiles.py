"""Files that hold secrets: whole or not there at all, their user's alone, encrypted where a passphrase is set."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TextIO

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from farm.config import Settings
from farm.errors import BadInput, Unavailable
from provenance import tokens
from provenance.certificates import PrivateKey

SEALED = b"farm sealed 1\n"  # then 16 bytes of salt, 12 of nonce, and the secret in AES-GCM
IN_TOKEN = re.compile(rb"^Key: (pkcs11:.+)$", re.MULTILINE)
ENCRYPTED = b"BEGIN ENCRYPTED PRIVATE KEY"
PATIENCE_S = 10.0


def passphrase_of(settings: Settings) -> bytes | None:
    if not settings.passphrase_file:
        return settings.passphrase.encode() or None
    if settings.passphrase:
        raise BadInput("two passphrases are set", field="passphrase", fix="unset FARM_PASSPHRASE or its file")
    path = Path(settings.passphrase_file)
    try:
        said = path.read_bytes().rstrip(b"\r\n")
    except OSError as error:
        raise Unavailable(
            f"{path}: {error.strerror}", field="passphrase_file", fix="see that it can be read"
        ) from error
    if not said:
        raise Unavailable(f"{path} holds no passphrase", field="passphrase_file", fix="write one line into it")
    return said


def read_key(path: Path, passphrase: bytes | None) -> tuple[PrivateKey, list[x509.Certificate]]:
    """A private key, and the certificates that stand behind it."""
    data = private_bytes(path)
    if token := IN_TOKEN.search(data):
        return tokens.find(token[1].decode(), passphrase), certificates_in(data)
    sealed = ENCRYPTED in data
    if sealed and passphrase is None:
        raise _locked(path)
    try:
        key = serialization.load_pem_private_key(data, passphrase if sealed else None)
    except ValueError as error:
        raise _wrong(path) if sealed else Unavailable(f"{path} is damaged", fix="put back a copy") from error
    if not isinstance(key, PrivateKey):
        raise Unavailable(f"{path} holds a key of another kind", fix="ES256 and Ed25519 are known")
    return key, certificates_in(data)


def write_key(
    path: Path, key: PrivateKey, chain: Sequence[x509.Certificate], passphrase: bytes | None, note: bytes = b""
) -> None:
    """`note` is a line of plain text above all. Of a key in a token where it is found."""
    kind = serialization.PrivateFormat.PKCS8
    how = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    if isinstance(key, tokens.TokenKey):
        itself = f"Key: {key.uri}\n".encode()
    else:
        itself = key.private_bytes(serialization.Encoding.PEM, kind, how)
    write_whole(path, note + itself + "".join(map(pem, chain)).encode(), 0o600)


def read_secret(path: Path, passphrase: bytes | None) -> bytes:
    data = private_bytes(path)
    if not data.startswith(SEALED):
        return data
    if passphrase is None:
        raise _locked(path)
    salt, nonce, body = data[14:30], data[30:42], data[42:]
    try:
        return AESGCM(_stretched(passphrase, salt)).decrypt(nonce, body, SEALED)
    except InvalidTag as error:
        raise _wrong(path) from error


def write_secret(path: Path, secret: bytes, passphrase: bytes | None) -> None:
    if passphrase:
        salt, nonce = os.urandom(16), os.urandom(12)
        secret = SEALED + salt + nonce + AESGCM(_stretched(passphrase, salt)).encrypt(nonce, secret, SEALED)
    write_whole(path, secret, 0o600)


def rests(path: Path) -> str:
    """How a secret rests there."""
    data = private_bytes(path)
    if IN_TOKEN.search(data):
        return "token"
    return "encrypted" if ENCRYPTED in data or data.startswith(SEALED) else "open"


def token_of(path: Path) -> str:
    """The URI of the key, if it is in a token."""
    found = IN_TOKEN.search(private_bytes(path)) if path.exists() else None
    return found[1].decode() if found else ""


def private_bytes(path: Path) -> bytes:
    if not path.exists():
        raise Unavailable(f"there is no {path}", fix="put back the one that was there")
    for place in (path.parent, path):
        _refuse_shared(place)
    return path.read_bytes()


def certificates_in(data: bytes) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(data) if b"BEGIN CERTIFICATE" in data else []


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


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """One process at a time, by a lock on this file, which goes with the process."""
    with open(path, "w", opener=partial(os.open, mode=0o600)) as lock:
        _wait_for(lock, path)
        yield


def _wait_for(lock: TextIO, path: Path) -> None:
    """Not for ever: a signer that was stopped in the middle must not hold up the others."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > until:
                raise Unavailable(f"another signer holds {path}", fix="see why it hangs") from error
            time.sleep(0.01)
        else:
            return


def pem(made: x509.Certificate) -> str:
    return made.public_bytes(serialization.Encoding.PEM).decode()


def _refuse_shared(place: Path) -> None:
    if place.stat().st_mode & 0o077:
        raise Unavailable(f"{place} can be read by others", fix=f"chmod go-rwx {place}, and think of new keys")


def _stretched(passphrase: bytes, salt: bytes) -> bytes:
    return hashlib.scrypt(passphrase, salt=salt, n=2**14, r=8, p=1, dklen=32)


def _locked(path: Path) -> Unavailable:
    return Unavailable(f"{path} is encrypted", fix="set FARM_PASSPHRASE_FILE, or FARM_PASSPHRASE")


def _wrong(path: Path) -> Unavailable:
    return Unavailable(f"{path} does not open with the passphrase", fix="give the one that it was encrypted with")
