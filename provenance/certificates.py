"""The certificates of the development authority, and lists of those to trust. Pure but for clock and serial numbers."""

from __future__ import annotations

import datetime as dt

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from farm.errors import BadInput

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
C2PA_SIGNING = ObjectIdentifier("1.3.6.1.4.1.62558.2.1")
ORGANISATION = "Farm development authority (not for production)"
# Days a certificate lives, and days before its end at which it is made anew. The issuing CA always outlives its leaf.
LIFE = {"root": (3650, 0), "issuing": (730, 120), "leaf": (90, 30)}


def certificate(
    role: str, key: PrivateKey, issuer: x509.Certificate | None, issuer_key: PrivateKey
) -> x509.Certificate:
    authority = role != "leaf"
    start = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=5)  # clocks differ a little
    subject = _name(role)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=LIFE[role][0]))
        .add_extension(x509.BasicConstraints(authority, 0 if role == "issuing" else None), critical=True)
        .add_extension(_usage(authority), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if not authority:
        purposes = x509.ExtendedKeyUsage([C2PA_SIGNING, ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(purposes, critical=False)
    return builder.sign(issuer_key, None if isinstance(issuer_key, ed25519.Ed25519PrivateKey) else hashes.SHA256())


def _name(role: str) -> x509.Name:
    common = {
        "root": "Farm development root",
        "issuing": "Farm development issuing CA",
        "leaf": "Farm development signer",
    }
    parts = (
        (NameOID.COUNTRY_NAME, "ZZ"),
        (NameOID.ORGANIZATION_NAME, ORGANISATION),
        (NameOID.COMMON_NAME, common[role]),
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
