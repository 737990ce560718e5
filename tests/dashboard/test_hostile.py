"""Whatever stands in a path, a query, a header or a form: the answer is a refusal in words, never a crash.

The routes and their parameters are read from the schema, so a new route is tried as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from dashboard import live, pages
from dashboard.app import mount
from dashboard.auth import COOKIE
from tests.api.conftest import World, jsonl, world_on

HUGE = [str(2**63), str(-(2**63) - 1), "9" * 5000]
REFUSED = [*HUGE, "\0", "1\0"]
STRANGE = [*REFUSED, str(2**63 - 1), "-1", "0", "", "x" * 10_000, "\ud7ff\uffff", "../.."]


@pytest.fixture
def hostile(database_url: str, tmp_path: Path) -> Iterator[World]:
    with world_on(database_url, tmp_path) as world:
        farm = world.farm
        app: Any = world.client.app
        mount(app, access=farm.access, insights=farm.insights, queue=farm.queue, store=farm.store, checker=farm.checker)
        app.state.stopping.set()  # a stream that is opened ends at once
        world.client = TestClient(app, raise_server_exceptions=False, follow_redirects=False)
        world.client.cookies.set(COOKIE, world.keys["ours/operator"])
        world.submit({}, {})
        yield world


def operations(world: World) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Every method of every route, the pages' too, with its parameters."""
    shown = FastAPI()
    for router in (pages.router, live.router):
        shown.include_router(router)
    schemas = [world.client.get("/openapi.json").json(), shown.openapi()]
    return [
        (method.upper(), path, about.get("parameters", []))
        for schema in schemas
        for path, methods in schema["paths"].items()
        for method, about in methods.items()
    ]


def requests(parameters: list[dict[str, Any]], values: list[str]) -> Iterator[tuple[str, dict[str, str], str]]:
    """One request for each parameter and value, all others being right: which, all of them, the value."""
    right = {one["name"]: "1" for one in parameters if one["required"] or one["in"] == "path"}
    for one, value in itertools.product(parameters, values):
        yield one["name"], right | {one["name"]: value}, value


def send(world: World, method: str, path: str, parameters: list[dict[str, Any]], given: dict[str, str]) -> Any:
    by_place: dict[str, dict[str, str]] = {"path": {}, "query": {}, "header": {}}
    for one in parameters:
        if one["name"] in given:
            by_place[one["in"]][one["name"]] = given[one["name"]]
    filled = path.format(**{name: quote(value, safe="") for name, value in by_place["path"].items()})
    return world.ask(method, filled, "ours/operator", params=by_place["query"], headers=by_place["header"])


def in_a_header(parameters: list[dict[str, Any]], name: str) -> bool:
    return any(one["name"] == name and one["in"] == "header" for one in parameters)


def test_no_value_in_any_path_or_query_crashes_any_route(hostile: World) -> None:
    tried = set()
    for method, path, parameters in operations(hostile):
        for name, given, value in requests(parameters, STRANGE):
            if in_a_header(parameters, name) and not value.isdecimal():
                continue
            status = send(hostile, method, path, parameters, given).status_code
            told = f"{method} {path}: {name}={value[:40]!r} is answered with {status}"
            number = next(one for one in parameters if one["name"] == name)["schema"].get("type") != "string"
            if value in REFUSED and ("\0" in value or number):
                assert 400 <= status < 500, told
            assert status < 500, told
            tried.add((path, name))
    assert {("/api/jobs", "after"), ("/batches/{batch_id}", "batch_id"), ("/live", "batch")} <= tried


def test_a_nul_that_no_route_asks_for_is_refused_too(hostile: World) -> None:
    for path in ("/static/%00", "/static/live.js%00", "/nothing/%00", "/api/jobs?%00=1", "/batches?x=%00"):
        answer = hostile.client.get(path)
        assert answer.status_code == 422, path
        assert answer.headers["content-type"] == "application/problem+json"
        assert "U+0000" in answer.json()["detail"]


def test_a_nul_in_a_line_is_a_bad_line(hostile: World) -> None:
    fields = ["prompt", "model", "id", "image", "format", "aspect_ratio", "a\0b"]
    bad = [{field: "a\0b"} for field in fields]
    answer = hostile.post("/api/batches", content=jsonl(*bad))
    assert (answer.status_code, answer.json()["bad_line_count"]) == (422, len(fields))
    kept = hostile.post("/api/batches", content=jsonl(*bad, {}), params={"skip_bad": True})
    assert kept.status_code == 201
    lines = hostile.get(f"/api/batches/{kept.json()['id']}/bad-lines").json()["items"]
    assert [line["line"] for line in lines] == list(range(1, len(fields) + 1))


def test_no_form_crashes_a_page(hostile: World) -> None:
    for value in ("\0", "a\0b", "9" * 5000, "\ud7ff"):
        assert hostile.client.post("/signin", data={"key": value}).status_code == 401
        right = hostile.client.post("/signin", data={"key": hostile.keys["ours/operator"], "after": value})
        assert (right.status_code, right.headers["location"]) == (303, "/")
        assert hostile.client.post("/batches/1", data={"action": value}).status_code == 422


def test_no_origin_crashes_a_form(hostile: World) -> None:
    for origin in (b"http://[", b"null", b"//", b"\xff"):
        answer = hostile.client.post("/batches/1", data={"action": "pause"}, headers={b"origin": origin})
        assert answer.status_code == 403
