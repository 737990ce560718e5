"""The CLI against a farm that answers: what it prints, what it writes, how it ends."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from farm.api import bodies
from farm.commands import session
from farm.errors import Fault
from farm.job import Cause
from farm.ports import Outcome
from tests.api.conftest import Shell, World, jsonl, picture


@pytest.fixture
def farm(world: World, address: str, monkeypatch: pytest.MonkeyPatch, shell: Shell) -> Shell:
    for name, value in {"URL": address, "KEY": world.keys["ours/submitter"], "HOME": "nowhere"}.items():
        monkeypatch.setenv(f"FARM_{name}", value)
    return shell


def batch_file(folder: Path, *lines: dict[str, Any]) -> Path:
    path = folder / "shapes.jsonl"
    path.write_bytes(jsonl(*lines))
    return path


def test_a_file_is_submitted_listed_and_shown(farm: Shell, tmp_path: Path) -> None:
    assert farm("submit", batch_file(tmp_path, {"n": 2}, {"width": 64}), "--json") == 0
    batch = farm.json()["id"]
    assert farm("ls", "--json") == 0
    assert [(row["name"], row["jobs"]) for row in farm.json()] == [("shapes", 3)]
    assert farm("ls", batch) == 0
    assert farm.out.count("a red circle") == 3
    assert farm("show", batch, "--json") == 0
    assert farm.json()["counts"] == {"queued": 3}
    assert farm("ls", "--state", "held", "--json") == 0
    assert farm.json() == []


def test_a_listing_that_is_cut_says_so_and_goes_on(farm: Shell, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farm.client.PAGE", 2)
    monkeypatch.setattr("farm.commands.batches.FEW", 3)
    batch = world.submit({"n": 5}).json()["id"]
    for options in ([batch], [batch, "--state", "queued"]):
        assert farm("ls", *options, "--json") == 0
        assert [row["id"] for row in farm.json()] == [1, 2, 3, 4, 5]
        assert farm("ls", *options) == 0
        assert farm.out.count("a red circle") == 3
        assert farm.err == "farm: 3 of 5; --limit or --after 3 shows more\n"
    assert farm("ls", "--state", "queued", "--limit", 4, "--after", 1) == 0
    assert (farm.out.count("a red circle"), farm.err) == (4, "")
    assert farm("ls", batch, "--limit", 3, "--json") == 0
    assert [row["id"] for row in farm.json()] == [1, 2, 3]
    for seed in range(3):
        world.submit({"seed": seed})
    assert farm("ls", "--after", 4, "--limit", 1) == 0
    assert farm.out.splitlines()[1].startswith("3 ")
    assert farm.err.endswith("farm: there are more; --limit or --after 3 shows more\n")


def test_a_line_s_own_name_is_listed_and_downloaded(farm: Shell, tmp_path: Path) -> None:
    assert farm("submit", batch_file(tmp_path, {"id": "the-first"}, {"seed": 9})) == 0
    assert farm("ls", 1) == 0
    assert farm.out.split()[:3] == ["id", "name", "state"]
    assert "the-first" in farm.out
    assert farm("download", 1, tmp_path / "out") == 0
    index = [json.loads(line) for line in (tmp_path / "out" / "index.jsonl").read_text().splitlines()]
    assert [(row["id"], row["name"]) for row in index] == [(1, "the-first"), (2, None)]
    assert farm("submit", batch_file(tmp_path, {"seed": 3})) == 0
    assert farm("ls", 2) == 0
    assert "name" not in farm.out


def test_bad_lines_are_told_line_by_line_and_end_with_two(farm: Shell, tmp_path: Path, world: World) -> None:
    path = batch_file(tmp_path, {}, {"steps": 0}, {"colour": "red"})
    assert farm("submit", path) == 2
    assert "line 2: steps:" in farm.err
    assert "line 3: colour:" in farm.err
    assert world.get("/api/batches").json()["items"] == []
    assert farm("submit", path, "--skip-bad", "--json") == 0
    assert farm.json()["bad_line_count"] == 2


def test_pictures_named_by_path_are_uploaded_once(farm: Shell, tmp_path: Path, world: World) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    assert farm("submit", batch_file(tmp_path, {"image": "a.png"}, {"image": "a.png", "seed": 1}), "--json") == 0
    jobs = world.get(f"/api/batches/{farm.json()['id']}/jobs").json()["items"]
    assert len({job["upload_id"] for job in jobs}) == 1
    assert farm("submit", batch_file(tmp_path, {"image": "../a.png"})) == 2
    assert "line 1: image: no file" in farm.err
    (tmp_path / "b.png").write_bytes(b"no picture")
    assert farm("submit", batch_file(tmp_path, {"image": "b.png"})) == 2
    assert "not a PNG" in farm.err


def test_a_path_hides_nothing_that_is_wrong_with_its_line(farm: Shell, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    path = tmp_path / "doubled.jsonl"
    path.write_text(
        '{"prompt": "a", "image": "a.png", "prompt": "b"}\n{"prompt": "a", "image": "a.png", "steps": NaN}\n'
    )
    assert farm("submit", path) == 2
    assert 'line 1: line: the field "prompt" stands there twice' in farm.err
    assert "line 2: line: not JSON: NaN is not a number" in farm.err


def test_a_picture_may_be_called_like_an_upload(farm: Shell, tmp_path: Path, world: World) -> None:
    (tmp_path / "up_photo.png").write_bytes(picture())
    assert farm("submit", batch_file(tmp_path, {"image": "up_photo.png"})) == 0
    upload = world.get("/api/jobs/1").json()["upload_id"]
    assert farm("submit", batch_file(tmp_path, {"image": upload, "seed": 3})) == 0
    assert world.get("/api/jobs/2").json()["upload_id"] == upload


def test_a_slow_source_of_lines_is_read_before_they_are_sent(
    farm: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly() -> Iterator[bytes]:
        yield jsonl({})
        time.sleep(0.6)
        yield jsonl({"seed": 2})

    monkeypatch.setattr(bodies, "IDLE_S", 0.2)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=slowly()))
    assert farm("submit", "-") == 0
    assert farm.out == "batch 1: 2 jobs\n"


def test_a_picture_that_is_not_there_is_one_bad_line_among_the_others(
    farm: Shell, tmp_path: Path, world: World
) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    lines: list[dict[str, Any]] = [
        {"image": "nope.png"},
        {"image": "nope.png", "colour": "red"},
        {"image": "a.png"},
        {"steps": 0},
        {},
    ]
    path = batch_file(tmp_path, *lines, {"image": "."}, {"image": "a\0.png"})
    assert farm("submit", path) == 2
    first, *told = farm.err.splitlines()
    assert first == "farm: 5 of 7 lines are bad (correct them, or leave them out with --skip-bad)"
    assert sorted(line.split(":")[0].strip() for line in told) == [
        "line 1",
        "line 2",
        "line 2",
        "line 4",
        "line 6",
        "line 7",
    ]
    assert told[0] == f"  line 1: image: no file {tmp_path}/nope.png (paths are relative to the batch's file)"
    assert "upload the file first" not in farm.err
    assert farm("submit", path, "--skip-bad") == 0
    assert farm.out == "batch 1: 2 jobs\n"
    assert farm.err.splitlines()[:2] == ["farm: 5 lines are bad and left out (`farm show 1` lists them)", told[0]]


def test_many_bad_lines_are_counted(farm: Shell, tmp_path: Path) -> None:
    assert farm("submit", batch_file(tmp_path, *[{"steps": 0}] * 239)) == 2
    assert len(farm.err.splitlines()) == 22
    assert farm.err.splitlines()[-1] == "  and 219 more"


def test_a_folder_is_no_batch(farm: Shell, tmp_path: Path) -> None:
    assert farm("submit", tmp_path) == 2
    assert f"{tmp_path} is a folder" in farm.err


def test_the_same_file_is_not_made_twice_unless_asked(farm: Shell, tmp_path: Path) -> None:
    path = batch_file(tmp_path, {})
    first, second = (farm("submit", path), farm.out)[1], (farm("submit", path), farm.out)[1]
    assert first.split(":")[0] == second.split(":")[0]
    assert "--again" in second
    farm("submit", path, "--again")
    assert farm.out.split(":")[0] != first.split(":")[0]


def test_download_writes_what_is_published_and_an_index_of_all(farm: Shell, tmp_path: Path, world: World) -> None:
    batch = world.submit({"n": 3, "seed": 1}).json()["id"]
    made = [world.finish(outcome, outcome.encode()) for outcome in (Outcome.ALLOW, Outcome.REVIEW, Outcome.BLOCK)]
    out = tmp_path / "out"
    assert farm("download", batch, out) == 0
    index = [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()]
    assert [(row["id"], row["state"], row["verdict"]) for row in index] == [
        (made[0], "published", "allow"),
        (made[1], "held", "review"),
        (made[2], "blocked", "block"),
    ]
    file = out / index[0]["file"]
    assert file.read_bytes() == b"allow"
    assert index[0]["sha256"] == hashlib.sha256(b"allow").hexdigest()
    assert sorted(path.name for path in out.iterdir()) == sorted([file.name, "index.jsonl"])


def test_batches_in_one_folder_share_its_index(farm: Shell, tmp_path: Path, world: World) -> None:
    first, second = (world.submit({"seed": seed}).json()["id"] for seed in (1, 2))
    world.finish(Outcome.ALLOW, b"one")
    for batch in (second, first, second):
        assert farm("download", batch, tmp_path / "out") == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "index.jsonl").read_text().splitlines()]
    assert [row["state"] for row in rows] == ["published", "queued"]
    assert (tmp_path / "out" / rows[0]["file"]).read_bytes() == b"one"


def test_a_download_replaces_nothing_that_it_did_not_write(farm: Shell, tmp_path: Path, world: World) -> None:
    batch = world.submit({}).json()["id"]
    (tmp_path / "README.md").write_text("mine")
    assert farm("download", batch, tmp_path / "README.md") == 2
    assert farm.err == f"farm: DIR: {tmp_path}/README.md is a file (give a folder)\n"
    assert farm("download", batch, tmp_path / "README.md" / "images") == 1
    assert farm.err == f"farm: {tmp_path}/README.md/images: Not a directory\n"
    (tmp_path / "index.jsonl").write_text("[1]\n")
    assert farm("download", batch, tmp_path) == 2
    assert (tmp_path / "index.jsonl").read_text() == "[1]\n"


def test_what_a_batch_waits_for_is_told_wherever_it_is_listed(farm: Shell, world: World, tmp_path: Path) -> None:
    warning = "no image is made now: the farm waits for the dispatcher"
    lines = tmp_path / "batch.jsonl"
    lines.write_text('{"prompt": "a red circle"}')
    assert farm("submit", lines) == 0
    assert farm.err == f"farm: {warning}\n"
    assert farm("submit", lines, "--again") == 0
    assert farm("ls") == 0
    assert farm.err == f"farm: {warning}\n"
    assert farm("show", 1) == 0
    assert farm.out.endswith(f"\n\n{warning}\n")
    world.farm.queue.beat("one", "dispatcher", "ready")
    assert farm("ls") == 0
    assert farm.err == ""


def test_watch_ends_with_one_if_a_job_failed(farm: Shell, world: World) -> None:
    good = world.submit({"seed": 1}).json()["id"]
    world.finish(Outcome.ALLOW)
    assert farm("watch", good) == 0
    assert "1 of 1: 1 published" in farm.err
    bad = world.submit({"seed": 2}).json()["id"]
    queue = world.farm.queue
    lane = next(lane for lane in queue.lanes() if lane.batch_id == bad)
    for _ in range(3):
        (lease,) = queue.claim(lane.id, "test", 1, 30.0)
        queue.fault(lease, Fault(Cause.RENDER_ERROR, "no"), gang=None, retry_s=0.0)
    assert farm("watch", bad) == 1


def test_deeds_are_done_and_told(farm: Shell, world: World) -> None:
    batch = world.submit({}, {"seed": 9}).json()["id"]
    job = world.get(f"/api/batches/{batch}/jobs").json()["items"][0]["id"]
    for deed in (["pause", batch, "--reason", "lunch"], ["resume", batch], ["priority", batch, "-5"]):
        assert farm(*deed) == 0
    assert world.get(f"/api/batches/{batch}").json()["priority"] == -5
    assert farm("cancel", f"job:{job}") == 0
    assert farm("cancel", batch) == 0
    assert world.get(f"/api/batches/{batch}").json()["counts"] == {"cancelled": 2}
    assert farm("retry", f"job:{job}") == 1
    assert "only a failed job" in farm.err


def test_errors_are_one_line(farm: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    assert farm("show", 999) == 1
    assert farm.err == "farm: no batch 999 in this project (`farm ls` lists them)\n"
    monkeypatch.setenv("FARM_KEY", "farm_wrong")
    assert farm("ls") == 1
    assert "FARM_KEY: this API key is unknown or revoked" in farm.err
    monkeypatch.setenv("FARM_URL", "http://127.0.0.1:9")
    assert farm("ls") == 1
    assert "no farm answers at http://127.0.0.1:9" in farm.err
    assert "farm up" in farm.err
    assert farm.err.count("\n") == 1


@pytest.mark.parametrize("key", ["farm_one\nfarm_two", "farm_ö", "farm_one farm_two"])
def test_a_key_that_is_none_is_told_and_not_shown(farm: Shell, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_KEY", key)
    assert farm("ls") == 1
    assert farm.err.startswith("farm: FARM_KEY: this is no API key")
    assert farm.err.count("\n") == 1
    assert "farm_" not in farm.err


def test_a_key_with_the_end_of_its_line_is_taken(farm: Shell, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_KEY", f"{world.keys['ours/submitter']}\n")
    assert farm("ls") == 0


def test_a_damaged_file_of_a_key_is_told(farm: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_bytes(b"\xff\xfe")
    monkeypatch.setenv("FARM_HOME", str(tmp_path))
    monkeypatch.delenv("FARM_KEY")
    assert farm("ls") == 1
    assert farm.err.startswith(f"farm: {tmp_path}/key: this is no API key")


def test_names_of_files_need_not_be_text(farm: Shell, tmp_path: Path, world: World) -> None:
    folder = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    (folder / os.fsdecode(b"\xe9.png")).write_bytes(picture())
    batch = folder / os.fsdecode(b"\xe9.jsonl")
    batch.write_bytes(jsonl({"image": os.fsdecode(b"\xe9.png")}))
    assert farm("submit", batch) == 0
    assert farm("ls", "--json") == 0
    assert [row["name"] for row in farm.json()] == ["?"]
    assert farm("download", 1, folder / "out") == 0
    assert "caf\\udce9/out" in farm.out


def test_a_listing_is_as_wide_as_it_is_told(farm: Shell, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = "a red circle " * 6
    batch = world.submit({"prompt": prompt}).json()["id"]
    monkeypatch.setenv("COLUMNS", "50")
    assert farm("ls", batch) == 0
    assert "…" in farm.out
    assert max(map(len, farm.out.splitlines())) <= 50
    monkeypatch.delenv("COLUMNS")
    assert farm("ls", batch) == 0
    assert prompt.strip() in farm.out


def test_a_job_is_shown_in_words_and_moments(farm: Shell, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_KEY", world.keys["ours/operator"])  # who may see how close it came
    world.submit({})
    assert farm("show", f"job:{world.finish(Outcome.REVIEW)}") == 0
    assert farm.out.count(" UTC") >= 4
    assert "e+09" not in farm.out
    assert re.search(r"^margin +0\.25$", farm.out, re.MULTILINE)


def test_who_stops_watching_is_told_that_the_batch_goes_on(
    farm: Shell, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    batch = world.submit({}).json()["id"]
    monkeypatch.setattr(session, "_poll", interrupted)
    assert farm("watch", batch) == 130
    assert f"batch {batch} goes on; `farm watch {batch}`" in farm.err


def test_what_is_waited_for_is_a_sentence() -> None:
    batch: dict[str, Any] = {"state": "open", "counts": {"queued": 1, "published": 2}}
    for jobs, reason, said in (
        (1, "waits for job 3, which it edits", "1 waits for job 3, which it edits"),
        (2, "waits for job 3, which it edits", "2 wait for job 3, which it edits"),
        (2, "store_down: no", "2 wait: store_down: no"),
    ):
        told = session.summary(batch | {"waits": [{"jobs": jobs, "reason": reason}]})
        assert told == f"1 queued, 2 published; {said}"
