"""Who signed, up to whom we trust: the certificates that a manifest store carries, put in order by their signatures.

The library names the serial number of the certificate that signed; anyone may make one with the same. The certificate
itself is read from the signature, and those above it count only where one signature follows from the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes

from provenance.certificates import check_list
from provenance.cose import Signature

MAX_LONG = 8


@dataclass(frozen=True, slots=True)
class Certificate:
    subject: str
    serial: str
    not_before: str
    not_after: str
    sha256: str


def chain(
    link: x509.Certificate | None, known: Sequence[x509.Certificate], trust: str
) -> tuple[list[Certificate], str | None]:
    """From this certificate on; and the hash of the one on the trust list at which it ends."""
    anchors = _anchors(trust)
    made: list[Certificate] = []
    while link is not None and len(made) < MAX_LONG:
        made.append(_described(link))
        if link in anchors:
            return made, made[-1].sha256
        link = _issuer(link, anchors) or _issuer(link, [one for one in known if one != link])
    return made, None


@dataclass(frozen=True, slots=True)
class Backing:
    """What one signature of a store rests on."""

    chain: tuple[Certificate, ...] = ()
    anchor: str | None = None
    serials: tuple[str, ...] = ()  # of those that vouch for the signer
    stampers: tuple[str, ...] = ()  # of those that vouch for its time stamp


def backing(
    label: str | None,
    serial: str | None,
    signed: Mapping[str, Signature],
    known: Sequence[x509.Certificate],
    trust: str,
) -> Backing:
    """Of the signature of the manifest with this label, by a certificate with this serial number. Where it cannot be
    read nobody is named, but everyone `known`, in the whole store, may have vouched."""
    one = signed.get(label or "")
    stampers = _above((one.stampers if one else ()) or known, trust)
    if one is None or not one.signers or str(one.signers[0].serial_number) != serial:
        return Backing((), None, _above(known, trust), stampers)
    links, anchor = chain(one.signers[0], one.signers, trust)
    return Backing(tuple(links), anchor, tuple(link.serial for link in links), stampers)


def _above(some: Sequence[x509.Certificate], trust: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(link.serial for one in some for link in chain(one, some, trust)[0]))


def list_of(anchor: str | None, lists: Iterable[tuple[str, str]]) -> str | None:
    """The name of the first trust list, of (name, PEM), that holds the certificate with this hash."""
    return next((name for name, pem in lists if anchor in {_sha256(one) for one in _anchors(pem)}), None)


def _issuer(link: x509.Certificate, among: Iterable[x509.Certificate]) -> x509.Certificate | None:
    return next((one for one in among if one.subject == link.issuer and _issued(link, one)), None)


@lru_cache(maxsize=256)
def _issued(link: x509.Certificate, by: x509.Certificate) -> bool:
    try:
        link.verify_directly_issued_by(by)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


@lru_cache(maxsize=8)
def _anchors(trust: str) -> tuple[x509.Certificate, ...]:
    return tuple(x509.load_pem_x509_certificates(check_list(trust).encode())) if trust else ()


def _described(made: x509.Certificate) -> Certificate:
    return Certificate(
        made.subject.rfc4514_string(),
        str(made.serial_number),
        made.not_valid_before_utc.isoformat(),
        made.not_valid_after_utc.isoformat(),
        _sha256(made),
    )


def _sha256(made: x509.Certificate) -> str:
    return made.fingerprint(hashes.SHA256()).hex()
