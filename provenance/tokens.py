"""Keys that never leave a token: PKCS#11 behind the same interface as a key in a file, which is that of `cryptography`.

A token is named by an RFC 7512 URI: `pkcs11:token=farm?module-path=/usr/lib/softhsm/libsofthsm2.so`; with `object=` it
names one key in it. Its PIN is the passphrase of the keys. A key management service would stand here the same way.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import threading
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import unquote

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, utils

from farm.errors import BadInput, Unavailable

if TYPE_CHECKING:
    from provenance.certificates import PrivateKey

SCHEME = "pkcs11:"
CURVES = {"es256": "1.2.840.10045.3.1.7", "ed25519": "1.3.101.112"}
_ASKED = re.compile(r"pkcs11:token=(?P<token>[^;?]+)(;object=(?P<object>[^;?]+))?\?module-path=(?P<module>.+)")


def check(uri: str) -> str:
    """A token's URI, as it was given."""
    found = _ASKED.fullmatch(uri)
    if found is None or found["object"]:
        fix = f"such as {SCHEME}token=farm?module-path=/usr/lib/softhsm/libsofthsm2.so"
        raise BadInput(f"{uri!r} names no token", field="token", fix=fix)
    return uri


def make(uri: str, pin: bytes | None, algorithm: str) -> PrivateKey:
    """A new key in this token, or in that of another key."""
    uri, label = re.sub(";object=[^?]*", "", uri), f"farm-{secrets.token_hex(8)}"
    pkcs11, parts = _library(), _parts(uri)
    with _told(uri):
        session = _session(parts["module"], parts["token"], pin)
        kinds = {"es256": pkcs11.KeyType.EC, "ed25519": pkcs11.KeyType.EC_EDWARDS}
        curve = {pkcs11.Attribute.EC_PARAMS: pkcs11.util.ec.encode_named_curve_parameters(CURVES[algorithm])}
        ways = {"es256": None, "ed25519": pkcs11.Mechanism.EC_EDWARDS_KEY_PAIR_GEN}
        with _alone:
            where = session.create_domain_parameters(kinds[algorithm], curve, local=True)
            where.generate_keypair(store=True, label=label, mechanism=ways[algorithm])
    return find(uri.replace("?", f";object={label}?", 1), pin)


def find(uri: str, pin: bytes | None) -> PrivateKey:
    pkcs11, parts = _library(), _parts(uri)
    with _told(uri):
        session = _session(parts["module"], parts["token"], pin)
        with _alone:
            handle = _Handle(uri, pin)
            private = handle.take(session)
            public = session.get_key(object_class=pkcs11.ObjectClass.PUBLIC_KEY, label=parts["object"])
            point = bytes(public[pkcs11.Attribute.EC_POINT])[2:]  # within an OCTET STRING
    if private.key_type == pkcs11.KeyType.EC:
        curve = ec.SECP256R1()
        return TokenP256(uri, handle, ec.EllipticCurvePublicKey.from_encoded_point(curve, point))
    return TokenEd25519(uri, handle, ed25519.Ed25519PublicKey.from_public_bytes(point))


class _Handle:
    """A private key in its token: found anew whenever the session is another."""

    def __init__(self, uri: str, pin: bytes | None) -> None:
        self._uri, self._pin, self._parts = uri, pin, _parts(uri)
        self._session = self._private = None

    def take(self, session: Any) -> Any:
        if self._session is not session:
            kind = _library().ObjectClass.PRIVATE_KEY
            self._private = session.get_key(object_class=kind, label=self._parts["object"])
            self._session = session
        return self._private

    def sign(self, data: bytes, mechanism: Any) -> bytes:
        with _told(self._uri):
            session = _session(self._parts["module"], self._parts["token"], self._pin)
            with _alone:
                return bytes(self.take(session).sign(data, mechanism=mechanism))


class TokenP256(ec.EllipticCurvePrivateKey):
    """Signs in its token; everything that would need the key itself is refused."""

    def __init__(self, uri: str, private: _Handle, public: ec.EllipticCurvePublicKey) -> None:
        self.uri, self._private, self._public = uri, private, public

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._public

    @property
    def curve(self) -> ec.EllipticCurve:
        return self._public.curve

    @property
    def key_size(self) -> int:
        return self._public.key_size

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        raw = self._private.sign(hashlib.sha256(data).digest(), _library().Mechanism.ECDSA)
        return utils.encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))

    def exchange(self, *_: Any) -> NoReturn:
        _refuse()

    def private_numbers(self) -> NoReturn:
        _refuse()

    def private_bytes(self, *_: Any) -> NoReturn:
        _refuse()

    def __copy__(self) -> TokenP256:
        return self

    def __deepcopy__(self, memo: dict[Any, Any]) -> TokenP256:
        return self


class TokenEd25519(ed25519.Ed25519PrivateKey):
    """The same on the other curve."""

    def __init__(self, uri: str, private: _Handle, public: ed25519.Ed25519PublicKey) -> None:
        self.uri, self._private, self._public = uri, private, public

    def public_key(self) -> ed25519.Ed25519PublicKey:
        return self._public

    def sign(self, data: Any) -> bytes:
        return self._private.sign(bytes(data), _library().Mechanism.EDDSA)

    def private_bytes_raw(self) -> NoReturn:
        _refuse()

    def private_bytes(self, *_: Any) -> NoReturn:
        _refuse()

    def __copy__(self) -> TokenEd25519:
        return self

    def __deepcopy__(self, memo: dict[Any, Any]) -> TokenEd25519:
        return self


TokenKey = TokenP256 | TokenEd25519
_sessions: dict[tuple[str, str, bytes | None], Any] = {}
_alone = threading.Lock()  # a session serves one call at a time


class _told:
    """What a token says goes wrong, as an error of ours. Its sessions are given up: those of a token that was pulled
    out, or of a server that was started again, never serve again."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, _library().PKCS11Error):
            _give_up()
            said = str(error) or type(error).__name__
            fix = "is it there, and is the passphrase its PIN?"
            raise Unavailable(f"{self.uri}: {said}", field="token", fix=fix) from error


def _session(module: str, token: str, pin: bytes | None) -> Any:
    """One for the process: a token counts the log-ins of a process, not of a session."""
    with _alone:
        if (module, token, pin) not in _sessions:
            found = _library().lib(module).get_token(token_label=token)
            _sessions[module, token, pin] = found.open(user_pin=(pin or b"").decode(), rw=True)
        return _sessions[module, token, pin]


def _give_up() -> None:
    """Closed as well: a token that is logged in to would refuse the next log-in."""
    with _alone:
        for session in _sessions.values():
            with contextlib.suppress(_library().PKCS11Error):
                session.close()
        _sessions.clear()


def _parts(uri: str) -> dict[str, str]:
    found = _ASKED.fullmatch(uri)
    if found is None:
        raise BadInput(f"{uri!r} names no token", field="token", fix=f"such as {SCHEME}token=farm?module-path=FILE")
    return {name: unquote(said) for name, said in found.groupdict().items() if said}


def _library() -> Any:
    try:
        import pkcs11
    except ImportError as error:
        fix = "pip install 'renderfarm[pkcs11]'"
        raise Unavailable("python-pkcs11 is not installed", field="token", fix=fix) from error
    return pkcs11


def _refuse() -> NoReturn:
    raise Unavailable("this key does not leave its token", field="token")
