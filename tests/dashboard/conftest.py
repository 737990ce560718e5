"""The pages over the same small world that the API's tests use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from dashboard.app import mount
from farm.api import create_app
from tests.api.conftest import World, examiner, world

__all__ = ["examiner", "pages", "world"]


@pytest.fixture
def pages(world: World) -> Iterator[World]:
    farm = world.farm
    app = create_app(farm)
    mount(app, access=farm.access, insights=farm.insights, queue=farm.queue, store=farm.store, checker=farm.checker)
    with TestClient(app, headers={"accept": "text/html"}, follow_redirects=False) as client:
        world.client = client
        yield world
