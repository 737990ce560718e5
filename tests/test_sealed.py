"""What is sealed opens with one key, said again what it is about, and only as it was written."""

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from farm.errors import BadInput, Unavailable
from farm.sealed import make_keys, private_path, public_path, read_private, read_public, seal, unseal

KEY = X25519PrivateKey.generate()


@given(st.binary(), st.text())
def test_only_its_key_opens_it(data: bytes, about: str) -> None:
    sealed = seal(KEY.public_key(), data, about)
    assert unseal(KEY, sealed, about) == data
    assert seal(KEY.public_key(), data, about) != sealed
    for key, what in ((X25519PrivateKey.generate(), about), (KEY, f"{about}.")):
        with pytest.raises(BadInput):
            unseal(key, sealed, what)


@given(st.binary(min_size=20, max_size=40), st.data())
def test_a_changed_file_does_not_open(data: bytes, draw: st.DataObject) -> None:
    sealed = bytearray(seal(KEY.public_key(), data, "job 1"))
    assert data not in bytes(sealed)
    sealed[draw.draw(st.integers(0, len(sealed) - 1))] ^= 1 << draw.draw(st.integers(0, 6))
    cut = bytes(sealed)[: draw.draw(st.integers(0, len(sealed) - 1))]
    for other in (bytes(sealed), cut, b""):
        with pytest.raises((BadInput, ValueError)):
            unseal(KEY, other, "job 1")


@pytest.mark.parametrize("passphrase", [None, b"correct horse"])
def test_keys_are_made_once_and_the_private_half_is_its_owners_alone(tmp_path: Path, passphrase: bytes | None) -> None:
    make_keys(tmp_path, passphrase)
    private = private_path(tmp_path)
    assert [stat.S_IMODE(one.stat().st_mode) for one in (private.parent, private)] == [0o700, 0o600]
    sealed = seal(read_public(public_path(tmp_path)), b"x", "y")
    assert unseal(read_private(private, passphrase), sealed, "y") == b"x"
    if passphrase:
        for wrong, error in ((None, Unavailable), (b"other", BadInput)):
            with pytest.raises(error):
                read_private(private, wrong)
    private.unlink()
    before = public_path(tmp_path).read_bytes()
    make_keys(tmp_path)
    assert public_path(tmp_path).read_bytes() == before
    assert not private.exists(), "an operator took it elsewhere"


def test_another_kind_of_key_is_refused(tmp_path: Path) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (tmp_path / "a").write_bytes(other.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    (tmp_path / "b").write_bytes(other.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    (tmp_path / "c").write_bytes(b"no key")
    for name in ("a", "c"):
        with pytest.raises(BadInput):
            read_private(tmp_path / name)
    for name in ("b", "c"):
        with pytest.raises(BadInput):
            read_public(tmp_path / name)
    with pytest.raises(Unavailable, match="farm up"):
        read_public(tmp_path / "nowhere")
