"""Server-sent events over a real connection: replay, and one project's alone."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any

import httpx
import pytest

from farm import events
from farm.api import bodies
from farm.db import transact
from tests.api.conftest import World, jsonl


def read(
    address: str, key: str, count: int, headers: dict[str, str] | None = None, **params: Any
) -> list[dict[str, Any]]:
    """The first events that come."""
    asked = {"Authorization": f"Bearer {key}"} | (headers or {})
    found: list[dict[str, Any]] = []
    with httpx.stream("GET", f"{address}/api/events", headers=asked, params=params, timeout=10) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("data:"):
                found.append(json.loads(line[5:]))
                if len(found) == count:
                    break
    return found


def test_a_reader_that_resumes_misses_nothing(world: World, address: str) -> None:
    for _ in range(3):
        world.submit({}, again=True)
        world.submit({}, again=True, who="theirs/submitter")
    events.seal(world.farm.queue.engine)
    key = world.keys["ours/submitter"]
    first = read(address, key, 2, after=0)
    rest = read(address, key, 1, {"Last-Event-ID": str(first[-1]["seq"])})
    batches = [one["id"] for one in world.get("/api/batches").json()["items"]]
    assert [one["batch_id"] for one in first + rest] == sorted(batches)
    assert {one["kind"] for one in first + rest} == {"batch_open"}


def test_what_is_illegal_is_heard_by_operators_alone(world: World, address: str) -> None:
    engine = world.farm.queue.engine
    kinds = ("leased", events.ILLEGAL, "blocked")
    transact(engine, lambda connection: events.append(connection, [events.event("ours", kind, 1.0) for kind in kinds]))
    events.seal(engine)
    heard = {who: read(address, world.keys[f"ours/{who}"], 2, after=0) for who in ("submitter", "operator")}
    assert [one["kind"] for one in heard["submitter"]] == ["leased", "blocked"]
    assert [one["kind"] for one in heard["operator"]] == ["leased", events.ILLEGAL]


def test_events_come_as_they_happen(world: World, address: str) -> None:
    def later() -> None:
        time.sleep(0.3)
        world.submit({})
        events.seal(world.farm.queue.engine)

    thread = threading.Thread(target=later)
    thread.start()
    assert read(address, world.keys["ours/submitter"], 1)[0]["kind"] == "batch_open"
    thread.join()


def test_a_place_to_resume_that_is_no_number_is_refused(world: World) -> None:
    answer = world.get("/api/events", headers={"Last-Event-ID": "x"})
    assert answer.status_code == 422
    assert answer.json()["field"] == "Last-Event-ID"


def test_a_revoked_key_ends_the_stream_it_opened(world: World, address: str) -> None:
    key = world.keys["ours/submitter"]
    who = world.farm.access.find_key(key)
    assert who is not None
    with httpx.stream("GET", f"{address}/api/events", headers={"Authorization": f"Bearer {key}"}, timeout=10) as answer:
        text = answer.iter_text()
        assert "following" in next(text)
        world.farm.access.revoke_key("ours", who.id, "test")
        assert "".join(text).strip() == ""


@pytest.mark.parametrize("path", ["/api/batches", "/api/uploads"])
def test_a_sender_that_pauses_for_long_is_told_so_and_let_go(
    world: World, address: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "IDLE_S", 0.2)
    host, port = address.removeprefix("http://").split(":")
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {world.keys['ours/submitter']}\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as wire:
        wire.sendall(f"{head}Content-Length: 100\r\n\r\n".encode() + jsonl({}))
        answer = b"".join(iter(lambda: wire.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"send it again without a pause" in answer
    assert world.get("/api/batches").json()["items"] == []


def test_a_sender_that_leaves_half_way_leaves_nothing(world: World, address: str) -> None:
    host, port = address.removeprefix("http://").split(":")
    body = jsonl(*[{}] * 100)
    head = f"POST /api/batches HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {world.keys['ours/submitter']}\r\n"
    with socket.create_connection((host, int(port))) as wire:
        wire.sendall(f"{head}Content-Length: {2 * len(body)}\r\n\r\n".encode() + body)
        time.sleep(0.2)
    time.sleep(0.2)
    assert world.get("/api/batches").json()["items"] == []
    assert httpx.get(f"{address}/healthz").status_code == 200
