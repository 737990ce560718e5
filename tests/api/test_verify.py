"""POST /api/verify: any file, one verdict; for anybody if the operator allows it, and never too much at once."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from farm import checking
from farm.ports import Outcome
from provenance import keys
from provenance.desk import VerifyingDesk
from provenance.signing import Signing
from tests.api.conftest import World, address, examiner, picture, world
from tests.provenance.test_verify import MANIFEST, encoded

__all__ = ["address", "examiner", "world"]


@pytest.fixture
def signed(tmp_path: Path, world: World) -> bytes:
    """A picture that this farm has signed."""
    return Signing(keys.init(tmp_path)).sign(MANIFEST, encoded("png"), "image/png").data


def verify(world: World, data: bytes, **options: Any) -> Any:
    return world.post("/api/verify", content=data, **options)


def test_says_all_that_is_known_of_a_file(world: World, signed: bytes) -> None:
    found = verify(world, signed).json()
    assert (found["verdict"], found["declared"], found["trusted_by"]) == ("Trusted", "made by AI", "this farm")
    assert (len(found["chain"]), found["bytes"], found["state"]) == (3, len(signed), None)
    damaged = verify(world, signed[:-30] + b"\0" + signed[-29:]).json()
    assert (damaged["verdict"], list(damaged["meanings"])) == ("Invalid", ["assertion.dataHash.mismatch"])
    bare = verify(world, picture()).json()
    assert (bare["verdict"], bare["source"]) == ("NoManifest", None)
    assert "does not mean that it was not made by AI" in bare["sentence"]
    assert verify(world, b"a text").json()["verdict"] == "Unreadable"
    assert verify(world, b"").status_code == 422


def test_tells_the_state_of_a_file_and_not_whose_it_is(world: World, signed: bytes) -> None:
    world.submit({"prompt": "a red circle"})
    world.finish(Outcome.REVIEW, data=signed)
    found = verify(world, signed, who="theirs/submitter").json()
    assert (found["verdict"], found["state"]) == ("Trusted", "held")
    assert "ours" not in json.dumps(found)


def test_who_has_no_key_may_verify_only_where_anyone_may(world: World, signed: bytes) -> None:
    assert world.client.post("/api/verify", content=signed).status_code == 401
    world.farm.checker.public = True
    assert world.client.post("/api/verify", content=signed).json()["verdict"] == "Trusted"


def test_without_a_trust_list_nothing_is_said_of_any_file(world: World, tmp_path: Path) -> None:
    answer = verify(world, picture())
    assert answer.status_code == 503
    assert str(tmp_path) not in answer.text


def test_what_is_revoked_counts_at_once_and_a_damaged_list_is_an_outage(
    world: World, tmp_path: Path, signed: bytes
) -> None:
    revoked = tmp_path / "trust" / "revoked.json"
    revoked.write_text("[")
    answer = verify(world, signed)
    assert answer.status_code == 503
    assert str(tmp_path) not in answer.text
    revoked.write_text("[]")
    found = verify(world, signed).json()
    assert found["verdict"] == "Trusted"
    revoked.write_text(json.dumps([{"serial": found["serial"], "since": 0}]))
    assert verify(world, signed).json()["verdict"] == "Invalid"


def test_a_new_trust_list_counts_at_once(tmp_path: Path, signed: bytes) -> None:
    desk = VerifyingDesk(tmp_path)
    assert desk.told(signed)["verdict"] == "Trusted"
    other = keys.init(tmp_path / "other")
    (tmp_path / "trust" / "root.pem").write_text(other.root)
    assert desk.told(signed)["verdict"] == "Valid"
    desk.close()


def flood(wire: socket.socket) -> None:
    for _ in range(1 << 14):
        wire.sendall(b"10000\r\n" + bytes(1 << 16) + b"\r\n")


@pytest.mark.parametrize("sized", [True, False])
def test_a_gigabyte_is_refused_at_the_door(world: World, address: str, signed: bytes, sized: bool) -> None:
    """By its declared length before any of it is read, or as soon as it is too much."""
    host, port = urlsplit(address).hostname, urlsplit(address).port
    head = f"POST /api/verify HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {world.keys['ours/submitter']}\r\n"
    head += f"Content-Length: {1 << 30}\r\n\r\n" if sized else "Transfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection((host, port), timeout=20) as wire:
        wire.sendall(head.encode())
        if sized:
            assert wire.recv(12) == b"HTTP/1.1 413"
        with pytest.raises(ConnectionError):  # the door is shut
            flood(wire)


@pytest.fixture
def busy(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """One place is left, and whoever has it waits."""
    go_on = threading.Event()
    monkeypatch.setattr(world.farm.checker, "_places", threading.Semaphore(1))
    monkeypatch.setattr(world.farm.checker, "verify", lambda _: {"waited": go_on.wait(20)})
    yield go_on
    go_on.set()


def test_who_finds_no_place_is_told_to_come_again(world: World, busy: threading.Event) -> None:
    answers: list[int] = []
    first = threading.Thread(target=lambda: answers.append(verify(world, picture()).status_code))
    first.start()
    while world.farm.checker._places._value:
        time.sleep(0.01)
    refused = verify(world, picture())
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert "too many" in refused.json()["detail"]
    busy.set()
    first.join()
    assert answers == [200]
    assert verify(world, picture()).status_code == 200


def test_a_sender_that_never_ends_gives_its_place_back(
    world: World, address: str, busy: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "MOST_S", 0.3)
    where = urlsplit(address)
    head = f"POST /api/verify HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.keys['ours/submitter']}\r\n"
    with socket.create_connection((where.hostname, where.port), timeout=20) as wire:
        wire.sendall(f"{head}Content-Length: 100\r\n\r\n".encode() + b"\x89PNG")
        assert wire.recv(12) == b"HTTP/1.1 408"
    busy.set()
    assert verify(world, picture()).status_code == 200


def test_a_prompt_is_opened_for_its_own_project_alone(world: World) -> None:
    world.submit({"prompt": "a red circle"})
    job = world.finish(Outcome.ALLOW)
    proof = world.get(f"/api/jobs/{job}/prompt-proof").json()
    assert proof == {"job_id": job, "prompt": "a red circle", "salt": f"ours {job}".encode().hex()}
    assert world.get(f"/api/jobs/{job}/prompt-proof", "theirs/operator").status_code == 404
    assert world.get(f"/api/jobs/{job}/prompt-proof", "ours/reviewer").status_code == 403
