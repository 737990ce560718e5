"""What dispatchers say of their gangs: the last word counts, and no word of one that is silent."""

from __future__ import annotations

from dataclasses import replace

from farm.commands.session import summary
from farm.errors import Fault
from farm.insights import SILENT
from farm.job import Cause
from farm.job_queue import GONE_S, NewJob
from farm.ports import GangState, GangStatus
from farm.waiting import STALE_S
from tests.queue.conftest import SPEC, START, Desk

BUSY = GangStatus("main", 0, "tiny", "main.1.ab", GangState.BUSY, "4 pictures", START - 5.0)
EMPTY = GangStatus("main", 1, "tiny", "", GangState.GONE, "a job", START - 90.0)


def test_each_place_is_listed_with_what_it_waits_for_and_how_long(desk: Desk) -> None:
    desk.queue.tell_gangs("one", [EMPTY, BUSY])
    desk.clock.now += 2.0
    said = {"dispatcher": "one", "age_s": 2.0}
    place = {"pool": "main", "model": "tiny", "nodes": []} | said
    assert desk.insights.pool() == [
        place | {"place": 0, "gang": "main.1.ab", "state": "busy", "waits_for": "4 pictures", "for_s": 7.0},
        place | {"place": 1, "gang": "", "state": "gone", "waits_for": "a job", "for_s": 92.0},
    ]


def test_the_last_word_replaces_all_of_the_one_before_and_nobody_elses(desk: Desk) -> None:
    desk.queue.tell_gangs("one", [BUSY, EMPTY])
    desk.queue.tell_gangs("two", [BUSY])
    desk.queue.tell_gangs("one", [replace(BUSY, state=GangState.READY, waits_for="a\0job" * 1000)])
    assert len(desk.insights.pool()) == 2
    rows = {row["dispatcher"]: row for row in desk.insights.pool()}
    assert (rows["one"]["state"], rows["two"]["state"]) == ("ready", "busy")
    assert rows["one"]["waits_for"] == "ajob" * 500


def test_what_a_silent_dispatcher_said_is_not_taken_for_true(desk: Desk) -> None:
    desk.queue.tell_gangs("one", [BUSY, EMPTY])
    desk.clock.now += STALE_S
    desk.queue.tell_gangs("two", [BUSY])
    fresh, silent = desk.insights.pool()
    assert (fresh["dispatcher"], fresh["state"]) == ("two", "busy")
    assert (silent["dispatcher"], silent["state"]) == ("one", SILENT)
    assert silent["waits_for"] == "its dispatcher, which last said: busy (4 pictures)"
    assert silent["for_s"] == silent["age_s"] == STALE_S


def test_one_that_is_long_silent_is_forgotten_by_the_others(desk: Desk) -> None:
    desk.queue.tell_gangs("one", [BUSY])
    desk.clock.now += GONE_S
    desk.queue.tell_gangs("two", [BUSY])
    assert len(desk.insights.pool()) == 2
    desk.clock.now += 1.0
    desk.queue.tell_gangs("two", [BUSY])
    assert [row["dispatcher"] for row in desk.insights.pool()] == ["two"]


def test_a_clock_that_is_behind_gives_no_negative_times(desk: Desk) -> None:
    desk.queue.tell_gangs("one", [replace(BUSY, since=START + 3.0)])
    desk.clock.now -= 1.0
    (row,) = desk.insights.pool()
    assert (row["for_s"], row["age_s"]) == (0.0, 0.0)


def test_a_batch_and_its_jobs_say_that_their_model_has_no_files(desk: Desk) -> None:
    batch = desk.submit(count=2)
    other = desk.submit(NewJob(line=1, spec=replace(SPEC, model="dev")), project="ours")
    desk.queue.beat("one", "dispatcher", "ready")
    words = "dev lacks vae: not in /srv/weights"
    desk.queue.tell_gangs("one", [replace(EMPTY, model="dev", state=GangState.LACKING, waits_for=words), BUSY])
    found = {one["id"]: one["warnings"] for one in desk.insights.batches("ours")}
    assert found[batch] == []
    (warning,) = found[other]
    assert warning.startswith("dev: its files are not on this farm")
    shown = desk.insights.batch("ours", other)
    assert shown is not None
    assert shown["warnings"] == [warning]
    (job,) = desk.insights.jobs("ours", other)
    assert job["reason"].startswith("weights_missing: its model's files are not on this farm")
    assert "/srv" not in job["reason"]  # its submitter does not run the farm
    lease = next(one for one in desk.claim() if one.spec.model == "dev")
    desk.queue.fault(lease, Fault(Cause.WEIGHTS_MISSING, words))
    assert desk.job(lease.job_id)["reason"] == job["reason"]  # nor does one that was tried say more
    alone = desk.insights.job("ours", job["id"])
    assert alone is not None
    assert alone["reason"] == job["reason"]
    assert {row["reason"] for row in desk.insights.jobs("ours", batch)} == {""}
    desk.queue.pause(other, "ann")
    desk.queue.cancel_batch(batch, "ann")
    assert [one["warnings"] for one in desk.insights.batches("ours")] == [[], []]


def test_a_batch_says_that_its_model_waits_for_a_gang_until_there_is_one(desk: Desk) -> None:
    batch = desk.submit(count=2)
    desk.queue.beat("one", "dispatcher", "ready")
    words = "room in the cluster: these nodes are too small"
    desk.queue.tell_gangs("one", [replace(EMPTY, state=GangState.STARTING, waits_for=words)])
    warning = f"a gang of tiny is starting and waits for {words}"
    found = desk.insights.batch("ours", batch)
    assert found is not None
    assert found["warnings"] == desk.insights.warnings(["tiny"]) == [warning]
    assert summary(found) == f"2 queued; {warning}"
    desk.queue.tell_gangs("one", [BUSY])
    assert [one["warnings"] for one in desk.insights.batches("ours")] == [[]]


def test_what_a_silent_dispatcher_lacked_is_not_said(desk: Desk) -> None:
    desk.submit(count=1)
    desk.queue.tell_gangs("one", [replace(EMPTY, state=GangState.LACKING, waits_for="no vae")])
    desk.clock.now += STALE_S
    assert desk.insights.warnings(["tiny"]) == ["no image is made now: the farm waits for the dispatcher"]
    assert desk.insights.jobs("ours")[0]["reason"] == ""
