"""Who signed, up to whom we trust: the certificates that a manifest store carries, put in order by their signatures.

The library names the serial number of the certificate that signed; the rest is looked for here, and counts only where
one signature follows from the next.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes

from provenance.certificates import check_list

_START = re.compile(rb"\x30\x82(?=(..)\x30\x82)", re.DOTALL)  # a certificate, in DER, is a sequence within a sequence
MAX_FOUND, MAX_LONG = 100, 8


@dataclass(frozen=True, slots=True)
class Certificate:
    subject: str
    serial: str
    not_before: str
    not_after: str
    sha256: str


def found_in(store: bytes) -> list[x509.Certificate]:
    """Those that lie in these bytes, whatever they are there for."""
    starts = ((one.start(), int.from_bytes(one[1], "big") + 4) for one in _START.finditer(store))
    pieces = dict.fromkeys(store[at : at + size] for at, size in starts)
    return [made for piece in list(pieces)[:MAX_FOUND] if (made := _parsed(piece)) is not None]


def chain(serial: str | None, known: Sequence[x509.Certificate], trust: str) -> tuple[list[Certificate], str | None]:
    """From the certificate with this serial number on; and the hash of the one on the trust list at which it ends."""
    anchors = _anchors(trust)
    link = next((one for one in known if str(one.serial_number) == serial), None)
    made: list[Certificate] = []
    while link is not None and len(made) < MAX_LONG:
        made.append(_described(link))
        if link in anchors:
            return made, made[-1].sha256
        link = _issuer(link, anchors) or _issuer(link, [one for one in known if one != link])
    return made, None


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


@lru_cache(maxsize=64)
def _parsed(piece: bytes) -> x509.Certificate | None:
    try:
        made = x509.load_der_x509_certificate(piece)
        _described(made), made.issuer.rfc4514_string()  # some of what is wrong with one shows only when it is read
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
        return None
    return made


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
