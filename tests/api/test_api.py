"""The HTTP surface: what it takes, what it refuses and how it says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from farm.db import connect
from farm.errors import Fault
from farm.job import Cause, State
from farm.ports import GangState, GangStatus, Outcome
from tests.api.conftest import World, jsonl, picture

NO_PROJECTS = "/api/verify"  # any file, of whoever, which is kept nowhere


def problem(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert {"type", "title", "status", "detail"} <= document.keys()
    assert document["status"] == status
    return document


def routes(world: World) -> list[tuple[str, str]]:
    paths = world.client.get("/openapi.json").json()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() for method in methods if path.startswith("/api")]


def test_every_route_of_the_api_asks_for_a_key(world: World) -> None:
    found = routes(world)
    assert len(found) >= 15
    for method, path in found:
        filled = path.replace("{batch_id}", "1").replace("{job_id}", "1")
        document = problem(world.client.request(method, filled, params={"priority": 1} if "prio" in path else {}), 401)
        assert document["field"] == "Authorization"


def test_a_reviewer_judges_and_runs_nothing(world: World) -> None:
    batch = world.submit({}).json()["id"]
    deeds = [path for method, path in routes(world) if method == "POST" and path != NO_PROJECTS]
    assert len(deeds) >= 8
    for path in deeds:
        filled = path.replace("{batch_id}", str(batch)).replace("{job_id}", "1")
        answer = world.post(
            filled, "ours/reviewer", params={"priority": 1} if "prio" in path else {}, content=jsonl({})
        )
        assert "reviewer" in problem(answer, 403)["detail"], path
    assert world.get(f"/api/batches/{batch}", "ours/reviewer").json()["counts"] == {"queued": 1}
    assert world.post(f"/api/batches/{batch}/cancel", "ours/operator").status_code == 200


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic abc", "Bearer farm_nobody"])
def test_a_key_that_is_none_is_refused(world: World, header: str) -> None:
    answer = world.client.get("/api/batches", headers={"Authorization": header})
    problem(answer, 401)
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_revoked_key_is_refused_at_once(world: World) -> None:
    who = world.farm.access.find_key(world.keys["ours/submitter"])
    assert who is not None
    world.farm.access.revoke_key("ours", who.id, "test")
    problem(world.get("/api/batches"), 401)


def test_a_batch_is_taken_listed_and_followed(world: World) -> None:
    answer = world.submit({"n": 2}, {"width": 64}, name="first")
    assert answer.status_code == 201
    batch = answer.json()["id"]
    assert answer.json()["jobs"] == 3
    assert [one["name"] for one in world.get("/api/batches").json()["items"]] == ["first"]
    assert world.get(f"/api/batches/{batch}").json()["counts"] == {"queued": 3}
    first = world.get(f"/api/batches/{batch}/jobs", params={"limit": 2}).json()
    rest = world.get(f"/api/batches/{batch}/jobs", params={"limit": 2, "after": first["next"]}).json()
    assert [job["line"] for job in first["items"] + rest["items"]] == [1, 1, 2]
    assert rest["next"] is None


def test_bad_lines_are_all_in_the_problem_and_nothing_is_accepted(world: World) -> None:
    document = problem(world.submit({}, {"steps": 0}, {"colour": "red"}), 422)
    assert [(bad["line"], bad["field"]) for bad in document["bad_lines"]] == [(2, "steps"), (3, "colour")]
    assert document["bad_line_count"] == 2
    assert world.get("/api/batches").json()["items"] == []


def test_skipped_lines_are_kept_with_the_batch(world: World) -> None:
    done = world.submit({}, {"steps": 0}, skip_bad=True).json()
    kept = world.get(f"/api/batches/{done['id']}/bad-lines").json()["items"]
    assert [(bad["line"], bad["field"]) for bad in kept] == [(2, "steps")]
    assert world.get(f"/api/batches/{done['id']}").json()["bad_lines"] == 1


def test_the_same_content_is_the_same_batch_unless_asked_again(world: World) -> None:
    first, same, again = world.submit({}), world.submit({}, name="other"), world.submit({}, again=True)
    assert (same.json()["id"], same.json()["repeated"]) == (first.json()["id"], True)
    assert again.json()["id"] != first.json()["id"]
    assert world.submit({}, who="theirs/submitter").json()["repeated"] is False


def test_what_jobs_would_wait_for_is_said_when_they_are_taken(world: World) -> None:
    assert world.submit({}).json()["warnings"] == ["no image is made now: the farm waits for the dispatcher"]
    world.farm.queue.beat("one", "dispatcher", "ready")
    empty = GangStatus("flat", 0, "flat", "", GangState.LACKING, "no vae in /secret", 0.0)
    world.farm.queue.tell_gangs("one", [empty, replace(empty, pool="tiny", model="tiny", state=GangState.GONE)])
    assert world.submit({}).json()["warnings"] == []
    (warning,) = world.submit({"model": "flat"}, {}).json()["warnings"]
    assert warning.startswith("flat: its files are not on this farm")


def test_the_same_picture_uploaded_twice_is_the_same_content(world: World) -> None:
    ids = [world.post("/api/uploads", content=picture()).json()["id"] for _ in range(2)]
    first, same = (world.submit({"image": id_}) for id_ in ids)
    assert ids[0] != ids[1]
    assert same.json()["id"] == first.json()["id"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/nothing", 404),
        ("GET", "/nothing", 404),
        ("DELETE", "/api/batches", 405),
        ("GET", "/api/batches/0", 422),
        ("GET", "/api/batches/x", 422),
        ("GET", f"/api/jobs/{2**63}", 422),
        ("GET", "/api/jobs?state=publishd", 422),
        ("GET", "/api/jobs?limit=0", 422),
        ("GET", "/api/jobs?stat=held", 422),
        ("POST", "/api/batches?skipbad=1", 422),
        ("POST", "/api/batches?priority=101", 422),
        ("GET", "/api/batches/999", 404),
        ("GET", "/api/jobs/999/image", 404),
    ],
)
def test_every_refusal_is_a_problem_document(world: World, method: str, path: str, status: int) -> None:
    problem(world.ask(method, path), status)


def test_what_is_unknown_is_answered_with_the_nearest(world: World) -> None:
    assert problem(world.get("/api/jobs?state=publishd"), 422)["fix"] == "did you mean 'published'?"
    assert "'state'" in problem(world.get("/api/jobs?stat=held"), 422)["fix"]


def test_an_outage_is_a_503_that_says_when_to_come_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(data: bytes) -> str:
        raise Fault(Cause.STORE_FULL, "no space left")

    monkeypatch.setattr(world.farm.store, "put", full)
    answer = world.post("/api/uploads", content=picture())
    assert problem(answer, 503)["cause"] == "store_full"
    assert answer.headers["retry-after"] == "5"


def test_nobody_learns_from_an_outage_where_things_lie(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    away = connect("postgresql://somebody@127.0.0.1:1/somewhere")
    monkeypatch.setattr(world.farm.access, "engine", away)
    answer = world.client.get("/api/jobs", headers={"Authorization": "Bearer nobody"})
    told = problem(answer, 503)
    assert (told["cause"], told["title"]) == ("database_down", "The database is not available now")
    assert "127.0.0.1" not in answer.text
    assert "127.0.0.1" in caplog.text


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_is_kept_as_received_and_not_listed(world: World, kind: str) -> None:
    data = picture(kind=kind)
    answer = world.post("/api/uploads", content=data, params={"name": "a.png"})
    assert answer.status_code == 201
    assert world.farm.store.get(answer.json()["sha256"]) == data
    assert world.get("/api/artifacts").json()["items"] == []


@pytest.mark.parametrize(
    ("data", "status", "word"),
    [
        (b"", 422, "empty"),
        (b"GIF89a nothing", 422, "not a PNG"),
        (picture()[:40], 422, "picture"),
        (picture(101, 100), 422, "more than 10,000"),
        (b"x" * (2**20 + 1), 413, "1 MiB"),
    ],
)
def test_what_is_no_picture_we_take_is_refused(world: World, data: bytes, status: int, word: str) -> None:
    assert word in problem(world.post("/api/uploads", content=data), status)["detail"]


def test_a_machine_too_busy_to_look_at_a_picture_asks_to_come_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("subprocess.run", no_room)
    answer = world.post("/api/uploads", content=picture())
    assert problem(answer, 503)["cause"] == "overloaded"
    assert answer.headers["retry-after"]


def test_a_full_disk_asks_to_come_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.SpooledTemporaryFile", lambda **_: Path("/dev/full").open("r+b"))  # noqa: SIM115
    answer = world.submit({})
    assert "no room for the batch" in problem(answer, 503)["detail"]
    assert answer.headers["retry-after"]


def test_a_body_without_a_length_is_cut_off_at_the_limit(world: World) -> None:
    sent = 0

    def endless() -> Any:
        nonlocal sent
        while sent < 2**24:
            sent += 2**16
            yield b"x" * 2**16

    problem(world.post("/api/uploads", content=endless()), 413)


def test_only_the_published_image_is_shown_and_byte_for_byte(world: World) -> None:
    batch = world.submit({"n": 3, "seed": 1}).json()["id"]
    published = world.finish(Outcome.ALLOW, b"published bytes")
    held = world.finish(Outcome.REVIEW, b"held bytes")
    blocked = world.finish(Outcome.BLOCK)
    assert [world.state(one) for one in (published, held, blocked)] == [State.PUBLISHED, State.HELD, State.BLOCKED]
    answer = world.get(f"/api/jobs/{published}/image")
    assert answer.content == b"published bytes"
    assert answer.headers["content-type"] == "image/png"
    again = world.get(f"/api/jobs/{published}/image", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    problem(world.get(f"/api/jobs/{held}/image"), 403)
    assert world.get(f"/api/jobs/{held}/image", "ours/reviewer").content == b"held bytes"
    assert problem(world.get(f"/api/jobs/{blocked}/image", "ours/operator"), 409)["reason"]
    assert [one["job_id"] for one in world.get("/api/artifacts").json()["items"]] == [published]
    assert world.get(f"/api/batches/{batch}").json()["settled"] is True


def test_how_close_a_picture_came_is_for_reviewers_alone(world: World) -> None:
    world.submit({})
    held = world.finish(Outcome.REVIEW)
    (verdict,) = world.get(f"/api/jobs/{held}").json()["verdicts"]
    assert verdict["outcome"] == "review"
    assert "margin" not in verdict
    assert world.get(f"/api/jobs/{held}", "ours/reviewer").json()["verdicts"][0]["margin"] == 0.25


def test_where_an_outage_lies_is_for_operators_alone(world: World) -> None:
    batch = world.submit({"n": 2, "seed": 1}).json()["id"]
    (lane,) = world.farm.queue.lanes()
    for number in (1, 2):
        (lease,) = world.farm.queue.claim(lane.id, "test", 1, 30.0)
        world.farm.queue.fault(lease, Fault(Cause.SIGNER_FAILED, f"/secret/socket of host-{number} closed"))
    answer = world.get(f"/api/batches/{batch}")
    assert [(wait["jobs"], wait["reason"]) for wait in answer.json()["waits"]] == [
        (2, "signer_failed: waits for a signer that does not fail")
    ]
    path = f"/api/jobs/{lease.job_id}"
    told = "".join(world.get(each, "ours/reviewer").text for each in (path, "/api/jobs"))
    assert "secret" not in told + answer.text
    assert world.get(path).json()["faults"][0]["detail"] == "waits for a signer that does not fail"
    assert world.get(path, "ours/operator").json()["faults"][0]["detail"] == "/secret/socket of host-2 closed"


def test_no_route_shows_one_project_to_another(world: World) -> None:
    batch = world.submit({"n": 2, "seed": 1}).json()["id"]
    job = world.finish(Outcome.ALLOW)
    upload = world.post("/api/uploads", content=picture()).json()["id"]
    for method, path in routes(world):
        if path == "/api/events" or (path.endswith(("uploads", "/batches")) and method == "POST"):
            continue
        if path.startswith("/api/pool/") or path == NO_PROJECTS:  # gangs and nodes are no project's
            continue
        filled = path.replace("{batch_id}", str(batch)).replace("{job_id}", str(job))
        answer = world.ask(method, filled, "theirs/operator", params={"priority": 1} if "prio" in path else {})
        if "{" in path:
            problem(answer, 404)
        else:
            assert answer.json()["items"] == []
    for line in ({"image": upload}, {"image": f"job:{job}"}):
        assert "in this project" in problem(world.submit(line, who="theirs/operator"), 422)["detail"]
    assert world.get(f"/api/batches/{batch}").json()["counts"] == {"published": 1, "queued": 1}


def test_a_batch_is_paused_resumed_reordered_and_cancelled(world: World) -> None:
    batch = world.submit({}).json()["id"]
    base = f"/api/batches/{batch}"
    assert world.post(f"{base}/pause", params={"reason": "lunch"}).json()["state"] == "paused"
    assert world.farm.queue.lanes() == []
    assert world.get(base).json()["reason"] == "lunch"
    world.post(f"{base}/resume")
    world.post(f"{base}/priority", params={"priority": 7})
    assert world.farm.queue.lanes()[0].priority == 7
    assert world.post(f"{base}/cancel").json()["cancelled_jobs"] == 1
    problem(world.post(f"{base}/pause"), 409)


def test_only_a_failed_job_is_tried_again_and_only_a_live_one_cancelled(world: World) -> None:
    batch = world.submit({"seed": 1}).json()["id"]
    lane = world.farm.queue.lanes()[0]
    for _ in range(3):
        (lease,) = world.farm.queue.claim(lane.id, "test", 1, 30.0)
        world.farm.queue.fault(lease, Fault(Cause.RENDER_ERROR, "no"), gang=None, retry_s=0.0)
    job = lease.job_id
    assert len(world.get(f"/api/jobs/{job}").json()["faults"]) == 3
    problem(world.post(f"/api/jobs/{job}/cancel"), 409)
    assert world.post(f"/api/jobs/{job}/retry").json()["state"] == "queued"
    problem(world.post(f"/api/jobs/{job}/retry"), 409)
    assert world.post(f"/api/jobs/{job}/cancel").json()["state"] == "cancelled"
    assert world.post(f"/api/batches/{batch}/retry").json()["retried_jobs"] == 0


def test_ready_means_that_a_dispatcher_works(world: World) -> None:
    assert world.client.get("/healthz").status_code == 200
    assert world.client.get("/readyz").json()["missing"] == ["dispatcher: none is running"]
    world.farm.queue.beat("host:1", "dispatcher", "waiting", "store_full: /secret/place is full")
    assert world.client.get("/readyz").json()["missing"] == ["dispatcher: store_full"]
    world.farm.queue.beat("host:1", "dispatcher", "ready")
    assert world.client.get("/readyz").status_code == 200


def test_metrics_count_verdicts_and_name_no_illegal_list(world: World) -> None:
    world.submit({}, {}, {})
    world.finish(Outcome.ALLOW)
    world.finish(Outcome.BLOCK, concept="red-triangle")
    world.finish(Outcome.BLOCK, concept="secret-list", illegal=True)
    text = world.client.get("/metrics").text
    said = {line for line in text.splitlines() if line.startswith("farm_verdicts_total{")}
    assert said == {
        'farm_verdicts_total{concept="",outcome="allow",stage="frame"} 1.0',
        'farm_verdicts_total{concept="red-triangle",outcome="block",stage="frame"} 1.0',
    }
    assert "secret-list" not in text
    assert "illegal" not in text.replace("not those of illegal lists", "")


def test_metrics_count_jobs_in_every_state(world: World) -> None:
    world.submit({})
    text = world.client.get("/metrics").text
    assert 'farm_jobs{state="queued"} 1.0' in text
    assert 'farm_jobs{state="held"} 0.0' in text


def test_a_long_line_does_not_fill_the_memory(world: World) -> None:
    document = problem(world.post("/api/batches", content=b"x" * 2**21 + b"\n" + jsonl({})), 422)
    assert document["bad_lines"] == [{"line": 1, "field": "line", "reason": "is longer than 65,536 bytes"}]
