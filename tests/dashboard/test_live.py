"""The stream that keeps a page up to date, over a real connection."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from dashboard.app import mount
from dashboard.auth import COOKIE
from tests.api.conftest import World, address, world

__all__ = ["address", "world"]


@pytest.fixture
def live(world: World, request: pytest.FixtureRequest) -> str:
    farm = world.farm
    app: Any = world.client.app
    mount(app, access=farm.access, insights=farm.insights, queue=farm.queue, store=farm.store, checker=farm.checker)
    return f"{request.getfixturevalue('address')}/live"


def test_a_revoked_key_ends_the_stream_of_its_visit(world: World, live: str) -> None:
    key = world.keys["ours/submitter"]
    who = world.farm.access.find_key(key)
    assert who is not None
    with httpx.stream("GET", live, cookies={COOKIE: key}, timeout=10) as answer:
        text = answer.iter_text()
        assert "retry" in next(text)
        world.farm.access.revoke_key("ours", who.id, "test")
        began = time.monotonic()
        assert "".join(text) == ""
        assert time.monotonic() - began < 5
