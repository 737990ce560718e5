"""`/readyz` says what the dispatcher last saw, and when it has fallen silent."""

from __future__ import annotations

import time

import pytest

from tests.api.conftest import World


def missing(world: World) -> list[str]:
    found: list[str] = world.client.get("/readyz").json()["missing"]
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
