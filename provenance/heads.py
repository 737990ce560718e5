"""The last head of the audit chain that the signer signed, kept outside the database, in `keys/` for the signer and in
`trust/` for everybody: a log that was cut, and its heads with it, looks whole in the database alone.

Several signers of one log that share one `keys/` folder know it together, whichever signed; with a copy of the keys
each knows what it signed itself, so that of a log that was cut the one tells that signed a head behind the cut.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from farm.audit import Head
from farm.errors import BadInput, Unavailable
from provenance import keyfiles
from provenance.keyfiles import write_whole

NAME = "audit.head"


def alone(home: Path) -> AbstractContextManager[None]:
    """One signer at a time: none signs an earlier head after a later one."""
    return keyfiles.alone(home / "keys" / f"{NAME}.lock")


def read(folder: Path) -> Head | None:
    path = folder / NAME
    if not path.exists():
        return None
    try:
        said = json.loads(path.read_text())
        return Head(int(said["seq"]), str(said["sha256"]), str(said["signature"]))
    except (ValueError, KeyError, TypeError) as error:
        raise Unavailable(f"{path} is damaged: {error}", fix="put back the one that was there") from error


def write(home: Path, head: Head) -> None:
    """The signer's own first: the other one may lag behind, never run ahead."""
    said = json.dumps(head._asdict()).encode()
    write_whole(home / "keys" / NAME, said, 0o600)
    write_whole(home / "trust" / NAME, said, 0o644)


def trust(home: Path) -> str:
    """The public key of the audit heads, in PEM."""
    path = home / "trust" / "audit.pem"
    if not path.exists():
        raise Unavailable(
            f"there is no public key of the audit heads at {path}", fix="start the signer, which makes it"
        )
    return path.read_text()


def verifier(public_pem: str) -> Callable[[int, str, str], bool]:
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
            public.verify(said, words(seq, sha256), ec.ECDSA(hashes.SHA256()))
        except (InvalidSignature, ValueError):
            return False
        return True

    return is_ours


def words(seq: int, sha256: str) -> bytes:
    return f"farm audit head\n{seq}\n{sha256}\n".encode()
