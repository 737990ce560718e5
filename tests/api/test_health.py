"""`/readyz` says what the dispatcher last saw, and when it has fallen silent."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from farm.api import create_app, health
from farm.db import connect, reading
from farm.insights import Insights
from tests.api.conftest import World


def missing(world: World) -> list[str]:
    return ask(world.client)


def ask(client: TestClient) -> list[str]:
    found: list[str] = client.get("/readyz").json()["missing"]
    return found


def test_every_cause_is_named_and_no_detail(world: World) -> None:
    world.farm.queue.beat("host:1", "dispatcher", "waiting", "signer_down, ray_gone: /secret/socket does not answer")
    assert missing(world) == ["dispatcher: signer_down, ray_gone"]


def test_a_dispatcher_that_fell_silent_is_told_from_one_that_never_was(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert missing(world) == ["dispatcher: none is running"]
    world.farm.queue.beat("host:1", "dispatcher", "ready")
    monkeypatch.setattr(world.farm.insights, "clock", lambda: time.time() + 40)
    assert missing(world) == ["dispatcher: none is running, or it cannot say so: last heard of 40 s ago"]


def test_a_database_that_hangs_is_said_in_time_and_holds_one_thread(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, asked = threading.Event(), []

    def hang() -> list[dict[str, object]]:
        asked.append(threading.current_thread())
        answers.wait(30)
        return []

    monkeypatch.setattr(health, "ANSWER_S", 0.2)
    with monkeypatch.context() as hanging, ThreadPoolExecutor(4) as people:
        hanging.setattr(world.farm.insights, "components", hang)
        assert list(people.map(missing, [world] * 4)) == [["database: no answer within 0 s"]] * 4
        assert len(asked) == 1
        answers.set()
        asked[0].join()
    assert missing(world) == ["dispatcher: none is running"]


@pytest.mark.parametrize("database_url", [pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True)
def test_a_server_that_stops_with_its_connections_open(
    world: World, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = connect(database_url)
    client = TestClient(create_app(replace(world.farm, insights=Insights(engine))))
    assert ask(client) == ["dispatcher: none is running"]
    with reading(engine) as connection:
        server = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    os.kill(server, signal.SIGSTOP)
    try:
        with monkeypatch.context() as hurried:
            hurried.setattr(health, "ANSWER_S", 0.2)
            assert ask(client) == ["database: no answer within 0 s"]
    finally:
        os.kill(server, signal.SIGCONT)
    assert ask(client) == ["dispatcher: none is running"]
    engine.dispose()


def test_a_fault_of_the_look_itself_is_no_silence(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[dict[str, object]]:
        raise ZeroDivisionError

    monkeypatch.setattr(world.farm.insights, "components", broken)
    with pytest.raises(ZeroDivisionError):
        world.client.get("/readyz")
