"""Time stamps: what the responder answers, what they are good for, and what happens while an authority is away."""

from __future__ import annotations

import datetime as dt
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from c2pa import Reader
from cryptography import x509

from farm.config import Settings
from farm.errors import BadInput, Fault, Unavailable
from farm.job import Cause
from farm.ports import Signed
from provenance import certificates, keys, stamping, timestamps
from provenance.authority import trust_also
from provenance.keyfiles import pem, read_key
from provenance.keyring import Keyring
from provenance.keys import MAKERS, Keys
from provenance.signing import Parent, Signing, Stamps
from provenance.stamping import Responder
from provenance.verify import context, verify_bytes
from tests.provenance.test_verify import EDIT, FORMATS, MANIFEST, encoded

NOW = dt.datetime.now(dt.UTC)
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the command openssl")


def openssl(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def passed(signed: Signed, trust: str) -> set[str]:
    """The codes of what the library found right."""
    with Reader(signed.mime, io.BytesIO(signed.data), context=context(trust)) as reader:
        assert reader.get_validation_state() == "Trusted"
        return {one["code"] for one in json.loads(reader.json())["validation_results"]["activeManifest"]["success"]}


def sign(ring: Keyring, kind: str = "png") -> Signed:
    return ring.signing.sign(MANIFEST, encoded(kind), FORMATS[kind])


@pytest.fixture
def authority(tmp_path: Path) -> Keys:
    """Another farm's."""
    return keys.init(tmp_path / "other")


def own(held: Keys) -> Callable[[bytes], bytes]:
    chain = list(held.stamp_chain)
    return lambda query: timestamps.answer(query, held.stamp_key, chain, dt.datetime.now(dt.UTC))


@pytest.fixture
def responder() -> Iterator[Responder]:
    made = Responder()
    yield made
    made.close()


@pytest.fixture
def outside(responder: Responder, authority: Keys) -> str:
    """An authority elsewhere: where it answers with another farm's stamps."""
    return responder.serve(own(authority))


def ring_with(home: Path, **settings: Any) -> Keyring:
    return Keyring(Settings(home=home, **settings))


@needs_openssl
@pytest.mark.parametrize("digest", ["sha256", "sha512"])
def test_openssl_verifies_our_stamps(tmp_path: Path, digest: str) -> None:
    held = keys.init(tmp_path)
    (tmp_path / "data").write_bytes(b"what is stamped")
    openssl(tmp_path, "ts", "-query", "-data", "data", f"-{digest}", "-cert", "-out", "query")
    reply = timestamps.answer((tmp_path / "query").read_bytes(), held.stamp_key, list(held.stamp_chain), NOW)
    (tmp_path / "reply").write_bytes(reply)
    said = openssl(tmp_path, "ts", "-verify", "-queryfile", "query", "-in", "reply", "-CAfile", "trust/root.pem")
    assert "OK" in said
    (tmp_path / "data").write_bytes(b"what was not")
    with pytest.raises(AssertionError):
        openssl(tmp_path, "ts", "-verify", "-data", "data", "-in", "reply", "-CAfile", "trust/root.pem")


@pytest.mark.parametrize("query", [b"", b"\x30\x00", b"no request at all"])
def test_what_is_no_request_is_refused(tmp_path: Path, query: bytes) -> None:
    held = keys.init(tmp_path)
    with pytest.raises(BadInput, match="no time stamp request"):
        timestamps.answer(query, held.stamp_key, list(held.stamp_chain), NOW)


def test_the_responder_answers_only_who_knows_its_address(responder: Responder, outside: str) -> None:
    headers = {"content-type": stamping.QUERY}
    there = outside.rpartition("/")[0]
    assert httpx.post(outside, content=stamping._question(), headers=headers).status_code == 200
    assert httpx.post(f"{there}/other", content=stamping._question(), headers=headers).status_code == 404
    assert httpx.post(outside, content=bytes(stamping.MAX_QUERY + 1), headers=headers).status_code == 404
    assert httpx.post(outside, content=b"nonsense", headers=headers).status_code == 422
    for _ in range(stamping.KEPT - 1):
        responder.serve(bytes)
    assert httpx.post(outside, content=stamping._question(), headers=headers).status_code == 200
    responder.serve(bytes)
    assert httpx.post(outside, content=stamping._question(), headers=headers).status_code == 404, "long gone"


@pytest.mark.parametrize("algorithm", ["es256", "ed25519"])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_signature_is_stamped(tmp_path: Path, kind: str, algorithm: str) -> None:
    keys.init(tmp_path, algorithm)
    ring = ring_with(tmp_path)
    assert {"timeStamp.validated", "timeStamp.trusted"} <= passed(sign(ring, kind), ring.signing.keys.trust)
    ring.close()


def soon_over(home: Path, seconds: int) -> Keys:
    """Keys whose leaf is about to end."""
    held = keys.init(home)
    issuer_key, issuers = read_key(home / "keys" / "issuing.pem", None)
    key = MAKERS["es256"]()
    made = certificates.certificate("leaf", key.public_key(), issuers[0], issuer_key)
    builder = x509.CertificateBuilder(
        made.issuer, made.subject, made.public_key(), made.serial_number, extensions=list(made.extensions)
    )
    end = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)
    short = builder.not_valid_before(made.not_valid_before_utc).not_valid_after(end)
    leaf = short.sign(issuer_key, certificates.digest_for(issuer_key))
    return replace(held, chain=pem(leaf) + pem(issuers[0]), leaf=leaf, leaf_key=key)


def test_a_signature_outlives_its_certificate_by_its_time_stamp(tmp_path: Path, responder: Responder) -> None:
    held = soon_over(tmp_path, seconds=4)
    stamped = Signing(held, Stamps(responder.serve(own(held)))).sign(MANIFEST, encoded("png"), "image/png")
    bare = Signing(held).sign(MANIFEST, encoded("png"), "image/png")
    wait = held.leaf.not_valid_after_utc - dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1)
    time.sleep(max(0.0, wait.total_seconds()))
    assert verify_bytes(stamped.data, stamped.mime, held.trust).verdict == "Trusted"
    assert verify_bytes(bare.data, bare.mime, held.trust).verdict == "Invalid"
    child = Signing(keys.load(tmp_path)).sign(
        EDIT, encoded("png", 2), "image/png", Parent(stamped.data, "image/png", "it")
    )
    assert verify_bytes(child.data, child.mime, held.trust).verdict == "Trusted", "and its edits with it"


def test_an_outside_authority_stamps_for_us_once_it_is_trusted(tmp_path: Path, outside: str, authority: Keys) -> None:
    ring = ring_with(tmp_path, timestamps=outside)
    with pytest.raises(Fault, match="of nobody we trust") as caught:
        sign(ring)
    assert caught.value.cause is Cause.TIMESTAMP_DOWN
    trust_also(tmp_path, None, x509.load_pem_x509_certificates(authority.root.encode()))
    signed = sign(ring)
    assert "timeStamp.trusted" in passed(signed, ring.signing.keys.trust)
    assert verify_bytes(signed.data, signed.mime, ring.signing.keys.trust).stamped_at
    ring.close()


def test_without_an_authority_that_is_required_work_waits(
    tmp_path: Path, responder: Responder, authority: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stamping, "PAUSE_S", 0.0)
    away = threading.Event()
    stamp = own(authority)
    between = responder.serve(lambda query: _away() if away.is_set() else stamp(query))
    keys.init(tmp_path)
    trust_also(tmp_path, None, x509.load_pem_x509_certificates(authority.root.encode()))
    ring = ring_with(tmp_path, timestamps=between)
    assert sign(ring).data
    away.set()
    with pytest.raises(Fault, match="no time stamp") as caught:
        sign(ring)
    assert caught.value.cause is Cause.TIMESTAMP_DOWN
    with pytest.raises(Fault, match="gives no time stamps"):
        ring.health()
    away.clear()
    assert ring.health()["timestamps"] == "ready"
    assert sign(ring).data
    ring.close()


def _away() -> bytes:
    raise Unavailable("the authority is away")


def test_without_an_authority_that_is_optional_the_farm_signs_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
    ring = ring_with(tmp_path, timestamps=url, timestamps_are="optional")
    began = time.monotonic()
    for _ in range(3):
        signed = sign(ring)
        assert "timeStamp.validated" not in passed(signed, ring.signing.keys.trust)
    assert time.monotonic() - began < 2 * stamping.PATIENCE_S
    assert [one.message for one in caplog.records if "no time stamps from" in one.message], "once, when it began"
    assert "signed without a time stamp" in caplog.text
    assert ring.health()["timestamps"].startswith("missing")
    ring.close()


def test_a_fault_that_is_not_the_time_stamps_is_not_laid_at_its_door(tmp_path: Path) -> None:
    ring = ring_with(tmp_path)
    with pytest.raises(Fault) as caught:
        ring.signing.sign(MANIFEST, b"no picture", "image/png")
    assert caught.value.cause is Cause.UNVERIFIED
    ring.close()


def test_time_stamps_can_be_left_off(tmp_path: Path) -> None:
    ring = ring_with(tmp_path, timestamps="off")
    assert "timeStamp.validated" not in passed(sign(ring), ring.signing.keys.trust)
    assert ring.health()["timestamps"] == "off"


PROXIED = """
import sys
from pathlib import Path
from farm.config import Settings
from provenance.keyring import Keyring
from tests.provenance.test_verify import MANIFEST, encoded
Keyring(Settings(home=Path(sys.argv[1]))).signing.sign(MANIFEST, encoded("png"), "image/png")
"""


def test_a_proxy_does_not_stand_between_the_signer_and_its_own_stamps(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        nobody = f"http://127.0.0.1:{silent.getsockname()[1]}"
    proxies = {"HTTP_PROXY": nobody, "http_proxy": nobody, "ALL_PROXY": nobody, "NO_PROXY": "example.org"}
    command = [sys.executable, "-c", PROXIED, str(tmp_path)]
    done = subprocess.run(command, env=os.environ | proxies, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
