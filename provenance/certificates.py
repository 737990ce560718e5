"""The certificates of the development authority, and lists of those to trust. Pure but for clock and serial numbers."""

from __future__ import annotations

import datetime as dt
import re
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from farm.errors import BadInput

_START = re.compile(rb"\x30\x82(?=(..)\x30\x82)", re.DOTALL)  # a certificate, in DER, is a sequence within a sequence
MAX_FOUND = 100
PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
C2PA_SIGNING = ObjectIdentifier("1.3.6.1.4.1.62558.2.1")
ORGANISATION = "Farm development authority (not for production)"
# Days a certificate lives, and days before its end at which it is made anew. The issuing CA always outlives its leaf.
LIFE = {"root": (3650, 0), "issuing": (730, 120), "leaf": (90, 30), "stamps": (730, 365)}
AUTHORITIES = ("root", "issuing")
NAMES = {
    "root": "Farm development root",
    "issuing": "Farm development issuing CA",
    "leaf": "Farm development signer",
    "stamps": "Farm development time stamps",
}
PURPOSES = {  # which extension, and whether whoever does not know it must refuse the certificate
    "leaf": (x509.ExtendedKeyUsage([C2PA_SIGNING, ExtendedKeyUsageOID.EMAIL_PROTECTION]), False),
    "stamps": (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING]), True),
}


def certificate(
    role: str, public: PublicKey, issuer: x509.Certificate | None, issuer_key: PrivateKey
) -> x509.Certificate:
    authority = role in AUTHORITIES
    start = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=5)  # clocks differ a little
    subject = name(role)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=LIFE[role][0]))
        .add_extension(x509.BasicConstraints(authority, 0 if role == "issuing" else None), critical=True)
        .add_extension(_usage(authority), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if role in PURPOSES:
        purposes, critical = PURPOSES[role]
        builder = builder.add_extension(purposes, critical=critical)
    return builder.sign(issuer_key, digest_for(issuer_key))


def request(key: PrivateKey, subject: x509.Name) -> x509.CertificateSigningRequest:
    """What another authority is asked to certify: a signer's key, for signing content."""
    builder = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(x509.BasicConstraints(False, None), critical=True)
        .add_extension(_usage(False), critical=True)
        .add_extension(PURPOSES["leaf"][0], critical=False)
    )
    return builder.sign(key, digest_for(key))


def digest_for(key: PrivateKey) -> hashes.SHA256 | None:
    """Ed25519 brings its own."""
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()


def name(role: str) -> x509.Name:
    parts = (
        (NameOID.COUNTRY_NAME, "ZZ"),
        (NameOID.ORGANIZATION_NAME, ORGANISATION),
        (NameOID.COMMON_NAME, NAMES[role]),
    )
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in parts])


def _usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def check_list(trust: str) -> str:
    """A trust list as it was given, if it is one; empty trusts nobody."""
    try:
        if trust:
            x509.load_pem_x509_certificates(trust.encode())
    except ValueError as error:
        raise BadInput(
            "the trust list holds no certificates in PEM", field="trust", fix="see trust/root.pem"
        ) from error
    return trust


def due(made: x509.Certificate, role: str) -> dt.datetime:
    """When to make the next one."""
    return made.not_valid_after_utc - dt.timedelta(days=LIFE[role][1])


def found_in(store: bytes) -> list[x509.Certificate]:
    """Those that lie in these bytes, whatever they are there for."""
    starts = ((one.start(), int.from_bytes(one[1], "big") + 4) for one in _START.finditer(store))
    pieces = dict.fromkeys(store[at : at + size] for at, size in starts)
    return [made for piece in list(pieces)[:MAX_FOUND] if (made := parsed(piece)) is not None]


@lru_cache(maxsize=64)
def parsed(piece: bytes) -> x509.Certificate | None:
    """A certificate in DER, if it is one."""
    try:
        made = x509.load_der_x509_certificate(piece)
        # Some of what is wrong with one shows only when it is read.
        made.subject.rfc4514_string(), made.issuer.rfc4514_string(), made.not_valid_after_utc
        return made if made.serial_number > 0 else None
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion, CryptographyDeprecationWarning):
        return None  # a warning, where warnings are errors: of what a later release will refuse
