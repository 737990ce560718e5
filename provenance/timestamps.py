"""RFC 3161 time stamps: how the development authority answers a request. Pure but for clock and serial numbers.

A time stamp says when a signature was there: made while its certificate was good, it is Trusted after that has ended.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from typing import Annotated, Any

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ObjectIdentifier

from farm.errors import BadInput

POLICY = ObjectIdentifier("2.25.231546938207612089513045622108613774601")  # a UUID of our own; it promises nothing
SHA256 = ObjectIdentifier("2.16.840.1.101.3.4.2.1")
DIGESTS = {SHA256: 32, ObjectIdentifier("2.16.840.1.101.3.4.2.2"): 48, ObjectIdentifier("2.16.840.1.101.3.4.2.3"): 64}
ECDSA_SHA256 = ObjectIdentifier("1.2.840.10045.4.3.2")
SIGNED_DATA = ObjectIdentifier("1.2.840.113549.1.7.2")
TST_INFO = ObjectIdentifier("1.2.840.113549.1.9.16.1.4")
CONTENT_TYPE = ObjectIdentifier("1.2.840.113549.1.9.3")
MESSAGE_DIGEST = ObjectIdentifier("1.2.840.113549.1.9.4")
SIGNING_CERTIFICATE = ObjectIdentifier("1.2.840.113549.1.9.16.2.47")
GRANTED = 0


@asn1.sequence
class Algorithm:
    oid: ObjectIdentifier
    parameters: asn1.Null | None = None


@asn1.sequence
class Imprint:
    algorithm: Algorithm
    digest: bytes


@asn1.sequence
class Request:
    version: int
    imprint: Imprint
    policy: ObjectIdentifier | None
    nonce: int | None
    certificates: Annotated[bool, asn1.Default(False)]


@asn1.sequence
class Info:
    version: int
    policy: ObjectIdentifier
    imprint: Imprint
    serial: int
    time: asn1.GeneralizedTime
    nonce: int | None


@asn1.sequence
class Attribute:
    oid: ObjectIdentifier
    values: asn1.SetOf[asn1.TLV]


@asn1.sequence
class CertificateDigest:
    digest: bytes


@asn1.sequence
class SigningCertificate:
    ids: list[CertificateDigest]


@asn1.sequence
class Issuer:
    name: asn1.TLV
    serial: int


@asn1.sequence
class Signer:
    version: int
    issuer: Issuer
    digest: Algorithm
    signed: Annotated[asn1.SetOf[Attribute], asn1.Implicit(0)]
    algorithm: Algorithm
    signature: bytes


@asn1.sequence
class Content:
    oid: ObjectIdentifier
    content: Annotated[bytes, asn1.Explicit(0)]


@asn1.sequence
class SignedData:
    version: int
    digests: asn1.SetOf[Algorithm]
    content: Content
    certificates: Annotated[asn1.SetOf[x509.Certificate], asn1.Implicit(0)]
    signers: asn1.SetOf[Signer]


@asn1.sequence
class Token:
    oid: ObjectIdentifier
    content: Annotated[SignedData, asn1.Explicit(0)]


@asn1.sequence
class Status:
    value: int


@asn1.sequence
class Reply:
    status: Status
    token: Token


def answer(request: bytes, key: ec.EllipticCurvePrivateKey, chain: list[x509.Certificate], now: dt.datetime) -> bytes:
    """`chain` begins with the certificate of `key`."""
    asked = _read(request)
    time = asn1.GeneralizedTime(now.astimezone(dt.UTC).replace(microsecond=0))
    serial = x509.random_serial_number()
    info = Info(version=1, policy=POLICY, imprint=asked.imprint, serial=serial, time=time, nonce=asked.nonce)
    content = asn1.encode_der(info)
    digest = Algorithm(oid=SHA256)
    data = SignedData(
        version=3,
        digests=asn1.SetOf([digest]),
        content=Content(oid=TST_INFO, content=content),
        certificates=asn1.SetOf(chain),
        signers=asn1.SetOf([_signer(content, digest, key, chain[0])]),
    )
    return asn1.encode_der(Reply(status=Status(value=GRANTED), token=Token(oid=SIGNED_DATA, content=data)))


def _read(request: bytes) -> Request:
    try:
        asked = asn1.decode_der(Request, request)
    except ValueError as error:
        raise BadInput(f"this is no time stamp request: {error}", field="body") from error
    if DIGESTS.get(asked.imprint.algorithm.oid) != len(asked.imprint.digest):
        raise BadInput("its digest is not SHA-256, SHA-384 or SHA-512", field="body")
    if asked.policy not in (None, POLICY):
        raise BadInput("it asks for the policy of another authority", field="body")
    return asked


def _signer(content: bytes, digest: Algorithm, key: ec.EllipticCurvePrivateKey, leaf: x509.Certificate) -> Signer:
    itself = CertificateDigest(digest=leaf.fingerprint(hashes.SHA256()))
    said = {
        CONTENT_TYPE: TST_INFO,
        MESSAGE_DIGEST: hashlib.sha256(content).digest(),
        SIGNING_CERTIFICATE: SigningCertificate(ids=[itself]),
    }
    signed = asn1.SetOf([Attribute(oid=oid, values=asn1.SetOf([_any(value)])) for oid, value in said.items()])
    return Signer(
        version=1,
        issuer=Issuer(name=asn1.decode_der(asn1.TLV, leaf.issuer.public_bytes()), serial=leaf.serial_number),
        digest=digest,
        signed=signed,
        algorithm=Algorithm(oid=ECDSA_SHA256),
        signature=key.sign(asn1.encode_der(signed), ec.ECDSA(hashes.SHA256())),
    )


def _any(value: Any) -> Any:
    return asn1.decode_der(asn1.TLV, asn1.encode_der(value))
