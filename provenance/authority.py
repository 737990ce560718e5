"""What an operator does with the keys: look at them, replace one, have the signer's certified by another authority,
say that a certificate no longer counts, trust another root, or one no longer. Signers that run see it with their next
signature.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from farm.errors import BadInput, Conflict, FarmError, nearest
from farm.ports import Frame
from provenance import certificates, chain, keys, labels, manifest
from provenance.keyfiles import (
    alone,
    certificates_in,
    pem,
    private_bytes,
    read_key,
    rests,
    token_of,
    write_key,
    write_whole,
)
from provenance.keys import LOCK, MAKERS, Keys
from provenance.signing import Signing

# What is made anew with each, from the top down: whoever certified a key goes before it.
ROTATED = {
    "leaf": ("leaf",),
    "issuing": ("issuing", "leaf"),
    "stamps": ("stamps",),
    "root": ("root", "issuing", "leaf", "stamps"),
}
ABOVE = {"leaf": "issuing", "issuing": "root", "stamps": "root"}
NEXT = "next.pem"  # the key that another authority is asked to certify


@dataclass(frozen=True, slots=True)
class Held:
    """One certificate that the signer has, or had."""

    role: str
    state: str  # in use, past, revoked, trusted
    algorithm: str
    serial: str
    subject: str
    not_before: str
    not_after: str
    rests: str  # encrypted, open, token, or where no key is held: nowhere


def held(home: Path) -> list[Held]:
    """Needs no passphrase."""
    no_longer, found = keys.revoked(home), []
    for role in keys.ROLES:
        path = home / "keys" / f"{role}.pem"
        if path.exists():
            made = certificates_in(private_bytes(path))[0]
            found.append(_held(role, "in use", made, no_longer, rests(path)))
    found += [_held("leaf", "past", made, no_longer) for made in keys.past(home)]
    return found + [_held("root", "trusted", made, no_longer) for made in keys.added(home)]


def _held(role: str, state: str, made: x509.Certificate, no_longer: dict[str, float], where: str = "nowhere") -> Held:
    serial = str(made.serial_number)
    subject = made.subject.rfc4514_string()
    life = made.not_valid_before_utc.isoformat(), made.not_valid_after_utc.isoformat()
    return Held(role, "revoked" if serial in no_longer else state, keys.kind_of(made), serial, subject, *life, where)


def rotate(
    home: Path, passphrase: bytes | None, role: str = "leaf", algorithm: str = "", token: str = ""
) -> x509.Certificate:
    """A new key in place of this one, and of those that it certified. What was signed stays Trusted. A leaf that is
    made in a token is made there again the next time."""
    if role not in ROTATED:
        raise BadInput(f"no key of the farm is called {role!r}", field="role", fix=nearest(role, ROTATED))
    if algorithm and (algorithm not in MAKERS or role != "leaf"):
        fix = nearest(algorithm, MAKERS) if role == "leaf" else "the others keep theirs"
        raise BadInput(f"{algorithm!r} cannot be chosen for {role}", field="algorithm", fix=fix)
    if token and role != "leaf":
        raise BadInput("the leaf alone rests in a token", field="token", fix="encrypt the others with a passphrase")
    now = keys.init(home, passphrase=passphrase)
    made_anew = [one for one in ROTATED[role] if one != "leaf" or role != "root" or not now.foreign]
    if "leaf" in made_anew and now.foreign:
        fix = "ask it for another with `farm keys csr`, and give its answer to `farm keys rotate --certificate`"
        raise Conflict("the signer's certificate is another authority's", fix=fix)
    with alone(home / "keys" / LOCK):
        made = [_make(home, one, passphrase, algorithm if one == "leaf" else "", token) for one in made_anew]
        return made[0]


def _make(home: Path, role: str, passphrase: bytes | None, algorithm: str, token: str) -> x509.Certificate:
    if role != "root":
        return keys.make(home, role, ABOVE[role], passphrase, algorithm, token)
    path = home / "keys" / "root.pem"
    old_key, old = read_key(path, passphrase)
    key = MAKERS[keys.kind_of(old_key)]()
    made = certificates.certificate("root", key.public_key(), None, key)
    _keep_trusted(home, [*keys.added(home), *old])
    write_whole(home / "trust" / "root.pem", "".join(map(pem, [made, *keys.added(home)])).encode(), 0o644)
    write_key(path, key, [made], passphrase)
    return made


def request(home: Path, passphrase: bytes | None, names: dict[str, str], algorithm: str = "", token: str = "") -> str:
    """A new key, and what another authority needs to certify it. The key in use stays until the answer is given."""
    now = keys.init(home, passphrase=passphrase)
    kind = algorithm or now.algorithm
    if kind not in MAKERS:
        raise BadInput(f"unknown algorithm {kind!r}", field="algorithm", fix=nearest(kind, MAKERS))
    oids = {"country": NameOID.COUNTRY_NAME, "organization": NameOID.ORGANIZATION_NAME, "name": NameOID.COMMON_NAME}
    try:
        subject = x509.Name([x509.NameAttribute(oids[part], said) for part, said in names.items()])
    except ValueError as error:
        raise BadInput(str(error), field="subject", fix="a country is two letters, such as DE") from error
    key = keys.new_key(kind, token or token_of(home / "keys" / "leaf.pem"), passphrase)
    write_key(home / "keys" / NEXT, key, [], passphrase)
    return certificates.request(key, subject).public_bytes(Encoding.PEM).decode()


def install(home: Path, passphrase: bytes | None, answer: list[x509.Certificate]) -> x509.Certificate:
    """The answer to the last request: the signer's certificate, then those above it. A picture is signed with it and
    read back before it is put in use."""
    now, path = keys.init(home, passphrase=passphrase), home / "keys" / NEXT
    if not path.exists():
        raise Conflict("no certificate was asked for", fix="`farm keys csr` makes a key, and the request for it")
    key, _ = read_key(path, passphrase)
    if not answer or answer[0].public_key() != key.public_key():
        fix = "give the signer's own first; `farm keys csr` makes a new request"
        raise BadInput("the first certificate is not for the key that was asked for", field="certificate", fix=fix)
    above = [one for one in answer[1:] if one.subject != one.issuer]  # the root stays out
    tried = replace(now, algorithm=keys.kind_of(key), chain="".join(map(pem, [answer[0], *above])), leaf_key=key)
    _try(tried)
    with alone(home / "keys" / LOCK):
        keys.remember(home, [now.leaf])
        write_key(home / "keys" / "leaf.pem", key, [answer[0], *above], passphrase, keys.FOREIGN)
        path.unlink()
    return answer[0]


def _try(tried: Keys) -> None:
    frame = Frame(8, 8, bytes(192))
    says = {"action": "c2pa.created", "digitalSourceType": manifest.GENERATED}
    assertion = {"label": "c2pa.actions.v2", "created": True, "data": {"actions": [says]}}
    try:
        Signing(tried).sign({"assertions": [assertion]}, labels.encode(frame, "png", manifest.GENERATED), "image/png")
    except FarmError as error:
        fix = "is its root trusted (`farm keys trust --add`), and is it for signing content?"
        raise BadInput(f"what it signs is not Trusted: {error.detail}", field="certificate", fix=fix) from error


def revoke(home: Path, passphrase: bytes | None, serial: str, since: float, reason: str) -> bool:
    """What it signed no longer counts, but for what a trusted time stamp puts before `since`. If it is in use another
    takes its place, and a root comes off the trust list; returns whether it is known here."""
    now = keys.init(home, passphrase=passphrase)
    roles = {one.serial: one.role for one in held(home) if one.state == "in use"}
    roots = {str(one.serial_number) for one in keys.added(home)}
    if since and (serial in roots or roles.get(serial) in ("root", "stamps")):
        says = f"{serial} is a root, or gives time stamps: whoever has its key makes stamps of any date"
        raise BadInput(says, field="--since", fix="leave it out")
    if serial in keys.revoked(home):
        raise Conflict(f"{serial} is revoked already", field="serial")
    if serial in roots:
        _require_not_needed(now, serial, home)
    if serial in roles:
        rotate(home, passphrase, roles[serial])
    with alone(home / "keys" / LOCK):
        said = {"serial": serial, "since": since, "reason": reason, "revoked_at": dt.datetime.now(dt.UTC).timestamp()}
        listed = json.dumps([*keys.revocations(home), said], indent=1)
        write_whole(home / "trust" / "revoked.json", listed.encode(), 0o644)
    if serial in roots or roles.get(serial) == "root":
        _take_off(home, passphrase, serial)
    return serial in roles or serial in roots | {str(one.serial_number) for one in [*keys.past(home), now.leaf]}


def trust_no_longer(home: Path, passphrase: bytes | None, serial: str) -> x509.Certificate:
    """A root off the trust list: who verifies by the new list trusts nothing that was signed or stamped under it."""
    now = keys.init(home, passphrase=passphrase)
    if serial == str(certificates_in(now.root.encode())[0].serial_number):
        fix = f"`farm keys revoke {serial}` puts another in its place; `farm keys rotate root` does, and trusts both"
        raise Conflict(f"{serial} is the farm's own root, which is in use", field="--remove", fix=fix)
    found = next((one for one in keys.added(home) if str(one.serial_number) == serial), None)
    if found is None:
        fix = "`farm keys ls` shows them, as trusted"
        raise BadInput(f"no root with the serial number {serial} is trusted", field="--remove", fix=fix)
    _require_not_needed(now, serial, home)
    _take_off(home, passphrase, serial)
    return found


def _require_not_needed(now: Keys, serial: str, home: Path) -> None:
    left = [one for one in keys.added(home) if str(one.serial_number) != serial]
    known = certificates_in(now.chain.encode())
    if chain.chain(now.leaf, known, now.root + "".join(map(pem, left)))[1] is None:
        fix = "have it certified by another first (`farm keys csr`): nothing that it signs would be Trusted"
        raise Conflict(f"the signer's own certificate ends at {serial}", field="serial", fix=fix)


def _take_off(home: Path, passphrase: bytes | None, serial: str) -> None:
    with alone(home / "keys" / LOCK):
        _keep_trusted(home, [one for one in keys.added(home) if str(one.serial_number) != serial])
    keys.init(home, passphrase=passphrase)


def trust_also(home: Path, passphrase: bytes | None, roots: list[x509.Certificate]) -> None:
    """What was signed under these is Trusted from now on, and their time stamps count."""
    for one in roots:
        if not _is_root(one):
            says = f"{one.subject.rfc4514_string()} is no root: it was certified by another"
            raise BadInput(says, field="--add", fix="give the certificate at the end of the chain")
    keys.init(home, passphrase=passphrase)
    with alone(home / "keys" / LOCK):
        _keep_trusted(home, [*keys.added(home), *roots])
    keys.init(home, passphrase=passphrase)


def _is_root(made: x509.Certificate) -> bool:
    try:
        made.verify_directly_issued_by(made)
        return made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False


def _keep_trusted(home: Path, roots: list[x509.Certificate]) -> None:
    write_whole(home / "keys" / "trusted.pem", "".join(map(pem, dict.fromkeys(roots))).encode(), 0o600)


def trust_list(home: Path) -> dict[str, Any]:
    """The farm's trust list, its hash, and what is on it. Needs no access to keys."""
    text = keys.trust(home)
    listed = certificates_in(text.encode())
    names = [
        {"subject": one.subject.rfc4514_string(), "sha256": one.fingerprint(hashes.SHA256()).hex()} for one in listed
    ]
    return {
        "pem": text,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "roots": names,
        "revoked": keys.revocations(home),
    }


def described(home: Path, made: x509.Certificate) -> Held:
    return next(one for one in held(home) if one.serial == str(made.serial_number))
