"""Claim, heartbeat, verdict, publication, fault, expiry: on both databases alike."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, event

from farm.access import Access
from farm.errors import Conflict, Fault
from farm.job import Cause, State
from farm.job_queue import JobQueue, NewJob
from farm.leasing import AGEING_S, LANES_SHOWN
from farm.ports import Lease, Outcome, Stage
from farm.suspects import LONGEST_LOST_S, STRIKES, lost_pause_s
from farm.waiting import WAITS
from tests.queue.conftest import SPEC, START, Desk, finished, frame_of, verdict


def test_a_job_goes_from_submission_to_publication(desk: Desk) -> None:
    batch = desk.submit(count=1)
    (lease,) = desk.claim()
    assert (lease.spec, lease.project_id, lease.batch_id, lease.attempt) == (SPEC, "ours", batch, 1)
    assert desk.publish(lease)
    assert desk.states(batch) == {"published": 1}
    assert desk.kinds(lease.job_id) == ["leased", "published"]
    artifact = desk.insights.artifacts("ours")[0]
    assert (artifact["job_id"], artifact["verified_at"]) == (lease.job_id, START)
    kept = desk.rows("SELECT embedding, gang, outcome FROM verdict")[0]
    assert (bytes(kept["embedding"]), kept["gang"], kept["outcome"]) == (b"\0\1\xff", "gang-1", "allow")


def test_a_batch_is_claimed_in_order_and_in_groups(desk: Desk) -> None:
    desk.submit(count=7)
    first, second = desk.claim(limit=5), desk.claim(limit=5)
    assert [lease.job_id for lease in first + second] == sorted(lease.job_id for lease in first + second)
    assert (len(first), len(second), desk.claim()) == (5, 2, [])


def test_jobs_of_two_shapes_or_priorities_lie_in_lanes_of_their_own(desk: Desk) -> None:
    wide = replace(SPEC, width=128)
    desk.submit(
        NewJob(line=1, spec=SPEC),
        NewJob(line=2, spec=wide),
        NewJob(line=3, spec=SPEC, priority=5),
        NewJob(line=4, spec=SPEC),
    )
    lanes = desk.queue.lanes()
    assert Counter((lane.shape_key, lane.priority) for lane in lanes) == {
        (SPEC.shape_key, 0): 1,
        (wide.shape_key, 0): 1,
        (SPEC.shape_key, 5): 1,
    }
    assert {len(desk.queue.claim(lane.id, "worker", 10, 30.0)) for lane in lanes} == {1, 2}


def test_a_sweep_of_guidance_is_one_lane(desk: Desk) -> None:
    desk.submit(*(NewJob(line=n, spec=replace(SPEC, guidance=n / 10)) for n in range(1, 30)))
    assert len(desk.queue.lanes()) == 1
    assert {lease.spec.guidance for lease in desk.claim(limit=3)} == {0.1, 0.2, 0.3}


def test_a_batch_of_many_shapes_shows_its_first_lanes_and_hides_no_other_project(desk: Desk) -> None:
    Access(desk.engine).create_project("theirs")
    desk.submit(*(NewJob(line=n, spec=replace(SPEC, steps=n), priority=n % 3) for n in range(1, 3 * LANES_SHOWN)))
    other = desk.submit(count=1, project="theirs")
    lanes = desk.queue.lanes()
    assert Counter(lane.project_id for lane in lanes) == {"ours": LANES_SHOWN, "theirs": 1}
    assert {lane.priority for lane in lanes if lane.batch_id != other} == {2}
    taken = 0
    while lanes := desk.queue.lanes():
        taken += sum(len(desk.queue.claim(lane.id, "worker-1", 10, 30.0)) for lane in lanes)
    assert taken == 3 * LANES_SHOWN, "those behind come as the first ones close"


def test_a_lane_that_waited_long_is_shown_before_many_fresh_ones(desk: Desk) -> None:
    old = desk.submit(count=1)
    desk.clock.now += 2 * AGEING_S
    desk.submit(*(NewJob(line=n, spec=replace(SPEC, steps=n), priority=1) for n in range(1, 2 * LANES_SHOWN)))
    assert old in {lane.batch_id for lane in desk.queue.lanes()}


def test_a_job_that_waits_for_a_licence_is_written_once(desk: Desk) -> None:
    desk.submit(count=2)
    queue = JobQueue(desk.engine, desk.clock, {"tiny": "a licence"})
    (lane,) = queue.lanes()
    written: list[int] = []

    def note(connection: object, cursor: Any, statement: str, *rest: object) -> None:
        if statement.startswith("UPDATE job"):
            written.append(cursor.rowcount)

    event.listen(desk.engine, "after_cursor_execute", note)
    assert queue.claim(lane.id, "worker-1", 10, 30.0) == queue.claim(lane.id, "worker-1", 10, 30.0) == []
    assert written == [2, 0]


def test_an_empty_lane_closes_and_a_job_put_back_opens_it(desk: Desk) -> None:
    desk.submit(count=1)
    (lease,) = desk.claim()
    assert len(desk.queue.lanes()) == 1
    assert desk.claim() == []
    assert desk.queue.lanes() == []
    desk.queue.fault(lease, Fault(Cause.RENDER_ERROR, "no"), retry_s=0.0)
    assert len(desk.queue.lanes()) == 1
    assert desk.claim()[0].attempt == 2


def test_a_lane_whose_jobs_wait_for_later_stays_open(desk: Desk) -> None:
    desk.submit(count=1)
    desk.queue.fault(desk.claim()[0], Fault(Cause.SIGNER_DOWN, "gone"), retry_s=60.0)
    assert desk.claim() == []
    assert len(desk.queue.lanes()) == 1
    desk.clock.now += 61
    assert len(desk.claim()) == 1


def test_many_claimers_share_a_batch_and_no_job_is_leased_twice(desk: Desk, another: Callable[[], Engine]) -> None:
    batch = desk.submit(count=120)
    queues = [JobQueue(another(), desk.clock) for _ in range(4)]
    start = threading.Barrier(len(queues))

    def work(number: int) -> list[int]:
        start.wait()
        taken: list[int] = []
        while lanes := queues[number].lanes():
            for lane in lanes:
                leases = queues[number].claim(lane.id, f"worker-{number}", 7, 30.0)
                for lease in leases:
                    ids = queues[number].record([(lease, verdict(frame_of(lease)))])
                    assert queues[number].publish([finished(lease, ids[0] or 0)]) == [True]
                taken += [lease.job_id for lease in leases]
        return taken

    with ThreadPoolExecutor(len(queues)) as pool:
        taken = [job for jobs in pool.map(work, range(len(queues))) for job in jobs]
    assert sorted(taken) == sorted(set(taken))
    assert desk.states(batch) == {"published": 120}


def test_closing_a_lane_never_hides_a_job_that_is_put_back_meanwhile(desk: Desk, another: Callable[[], Engine]) -> None:
    desk.submit(count=4)
    queues = [JobQueue(another(), desk.clock) for _ in range(3)]
    lane = desk.queue.lanes()[0].id

    def churn(number: int) -> None:
        for _ in range(25):
            for lease in queues[number].claim(lane, f"worker-{number}", 1, 30.0):
                queues[number].fault(lease, Fault(Cause.RAY_GONE, "gone"), retry_s=0.0)

    with ThreadPoolExecutor(len(queues)) as pool:
        list(pool.map(churn, range(len(queues))))
    assert len(desk.queue.lanes()) == 1
    assert len(desk.claim()) == 4


def test_a_heartbeat_keeps_a_lease_and_names_the_lost(desk: Desk) -> None:
    desk.submit(count=2)
    kept, lost = desk.claim(lease_s=10.0)
    desk.queue.cancel_job(lost.job_id, "ann")
    desk.clock.now += 8
    pairs = [(kept.job_id, kept.attempt), (lost.job_id, lost.attempt)]
    assert desk.queue.heartbeat("worker-1", pairs, 10.0) == {kept.job_id}
    assert desk.queue.heartbeat("worker-2", pairs, 10.0) == set()
    assert desk.queue.heartbeat("worker-1", [(kept.job_id, kept.attempt + 1)], 10.0) == set()
    desk.clock.now += 8
    assert desk.queue.expire() == 0


def test_an_expired_lease_goes_back_and_nobody_pays(desk: Desk) -> None:
    batch = desk.submit(count=1)
    for attempt in range(1, 6):
        (lease,) = desk.claim(lease_s=10.0)
        assert lease.attempt == attempt
        desk.clock.now += 11
        assert desk.queue.expire() == 1
        desk.clock.now += 2 * LONGEST_LOST_S
    assert desk.states(batch) == {"queued": 1}
    assert desk.job(lease.job_id)["reason"] == f"lease_lost: waits for {WAITS[Cause.LEASE_LOST]}"
    assert desk.rows("SELECT payer FROM job_fault") == [{"payer": "environment"}], "nobody got through meanwhile"


def claim_of(desk: Desk, batch: int, owner: str = "worker-1") -> list[Lease]:
    (lane,) = [lane for lane in desk.queue.lanes() if lane.batch_id == batch]
    return desk.queue.claim(lane.id, owner, 4, 30.0)


def test_a_job_of_which_every_dispatcher_dies_has_failed_with_each_death_kept(desk: Desk) -> None:
    batch, limit = desk.submit(count=1), STRIKES[Cause.LEASE_LOST]
    for number in range(limit):
        assert desk.states(batch) == {"queued": 1}
        (killer,) = claim_of(desk, batch, f"worker-{number}")
        desk.clock.now += 31
        assert desk.queue.expire() == 1
        desk.clock.now += 2 * LONGEST_LOST_S
        (other,) = claim_of(desk, desk.submit(count=1))
        assert desk.publish(other)
    assert desk.states(batch) == {"failed": 1}
    met = desk.rows("SELECT cause, detail FROM job_fault ORDER BY id")
    assert [row["cause"] for row in met] == ["lease_lost"] * limit + ["poison"]
    assert [row["detail"].split()[0] for row in met[:-1]] == [f"worker-{number}" for number in range(limit)]
    assert desk.job(killer.job_id)["reason"] == f"poison: {limit} times, while others got through: lease_lost"
    assert desk.kinds(killer.job_id)[-1] == "failed"
    assert desk.queue.retry(batch_id=batch, by="ann") == 1
    claim_of(desk, batch)
    desk.clock.now += 31
    desk.queue.expire()
    assert desk.states(batch) == {"queued": 1}, "a person asked for it: it is counted anew"


def test_a_job_is_not_failed_for_what_another_in_its_dispatcher_does(desk: Desk) -> None:
    """The first job ends every dispatcher; the second is long, and needs one that outlives it."""
    batch = desk.submit(count=2)
    for number in range(200):
        desk.clock.now += 2 * LONGEST_LOST_S
        flying: list[Lease] = []
        for lane in desk.queue.lanes() * 2:
            jobs = [lease.job_id for lease in flying]
            flying += desk.queue.claim(lane.id, f"worker-{number}", 1, 30.0, jobs)
        if not flying:
            break
        (other,) = claim_of(desk, desk.submit(count=1), "elsewhere")
        assert desk.publish(other)
        if 1 in [lease.job_id for lease in flying]:
            desk.clock.now += 31
            assert desk.queue.expire() == len(flying)
        else:
            assert all(desk.publish(lease) for lease in flying)
    assert desk.states(batch) == {"failed": 1, "published": 1}
    assert desk.state(1) == "failed"


def test_attempts_that_an_outage_ended_make_no_pause_of_the_first_lost_lease(desk: Desk) -> None:
    desk.submit(count=1)
    for _ in range(9):
        (lease,) = desk.claim()
        desk.queue.fault(lease, Fault(Cause.SIGNER_DOWN, "away"), retry_s=0.0)
    desk.claim()
    desk.clock.now += 31
    desk.queue.expire()
    assert desk.job(lease.job_id)["not_before"] == desk.clock.now


def test_who_lost_its_lease_is_tried_alone_and_later_each_time(desk: Desk) -> None:
    batch = desk.submit(count=4)
    four = desk.claim()
    desk.clock.now += 31
    assert desk.queue.expire() == 4
    alone = claim_of(desk, batch, "worker-2")
    assert [lease.job_id for lease in alone] == [four[0].job_id]
    desk.clock.now += 31
    assert desk.queue.expire() == 1
    assert desk.clock.now + 1 <= desk.job(four[0].job_id)["not_before"] <= desk.clock.now + 2
    assert [lease.job_id for lease in claim_of(desk, batch, "worker-2")] == [four[1].job_id]


@given(st.integers(1, 10_000))
def test_the_pause_after_a_lost_lease_grows_and_has_an_end(tries: int) -> None:
    assert lost_pause_s(1) == 0.0
    assert min(2 ** (tries - 1), LONGEST_LOST_S) <= lost_pause_s(tries + 1) <= 2 * LONGEST_LOST_S


@pytest.mark.parametrize("what", ["verdict", "publication", "fault"])
def test_what_comes_after_the_lease_was_lost_is_dropped_and_counted(desk: Desk, what: str) -> None:
    desk.submit(count=1)
    (old,) = desk.claim(lease_s=10.0)
    verdict_id = desk.judge(old)
    desk.clock.now += 11
    desk.queue.expire()
    (new,) = desk.claim(owner="worker-2")
    before = desk.job(old.job_id)
    if what == "verdict":
        assert desk.queue.record([(old, verdict("f" * 64, Outcome.BLOCK))]) == [None]
    elif what == "publication":
        assert desk.queue.publish([finished(old, verdict_id or 0)]) == [False]
    else:
        assert desk.queue.fault(old, Fault(Cause.RENDER_ERROR, "late")) is None
    assert desk.job(old.job_id) == before
    assert desk.insights.superseded() == 1
    assert desk.publish(new)
    assert len(desk.rows("SELECT * FROM artifact")) == 1


def test_a_lease_of_another_owner_with_the_same_attempt_is_not_enough(desk: Desk) -> None:
    desk.submit(count=1)
    (lease,) = desk.claim()
    thief = replace(lease, owner="somebody")
    assert desk.judge(thief) is None
    assert desk.queue.publish([finished(thief, desk.judge(lease) or 0)]) == [False]
    assert desk.state(lease.job_id) == "leased"


def test_one_lost_lease_does_not_stop_its_group(desk: Desk) -> None:
    batch = desk.submit(count=3)
    leases = desk.claim()
    ids = [desk.judge(lease) or 0 for lease in leases]
    desk.queue.cancel_job(leases[1].job_id, "ann")
    results = [finished(lease, id_) for lease, id_ in zip(leases, ids, strict=True)]
    assert desk.queue.publish(results) == [True, False, True]
    assert desk.states(batch) == {"published": 2, "cancelled": 1}


def test_saying_it_twice_is_saying_it_once(desk: Desk) -> None:
    """A connection that breaks after the commit makes a caller repeat itself."""
    desk.submit(count=2)
    lease, blocked = desk.claim()
    assert desk.judge(lease) == desk.judge(lease)
    assert desk.judge(blocked, Outcome.BLOCK) == desk.judge(blocked, Outcome.BLOCK)
    result = finished(lease, desk.judge(lease) or 0)
    assert desk.queue.publish([result]) == desk.queue.publish([result]) == [True]
    assert len(desk.rows("SELECT * FROM verdict")) == 2
    assert len(desk.rows("SELECT * FROM artifact")) == 1
    assert desk.insights.superseded() == 0


@pytest.mark.parametrize("stage", [stage for stage in Stage if stage is not Stage.PREVIEW])
def test_a_blocking_verdict_of_any_stage_ends_the_job_with_its_reason(desk: Desk, stage: Stage) -> None:
    batch = desk.submit(count=1)
    (lease,) = desk.claim()
    said = verdict("b" * 64, Outcome.BLOCK, stage, reason="shows violence")
    assert desk.queue.record([(lease, said)]) != [None]
    assert desk.states(batch) == {"blocked": 1}
    job = desk.job(lease.job_id)
    assert (job["reason"], job["owner"], job["verdict_id"] is not None) == ("shows violence", None, True)
    assert desk.queue.publish([finished(lease, job["verdict_id"])]) == [False]


def test_a_doubt_about_the_prompt_holds_a_frame_that_was_allowed(desk: Desk) -> None:
    desk.submit(count=1)
    (lease,) = desk.claim()
    desk.queue.record([(lease, verdict("c" * 64, Outcome.REVIEW, Stage.PROMPT))])
    assert desk.publish(lease, Outcome.ALLOW)
    assert desk.state(lease.job_id) == "held"


def test_what_law_1_refuses_faults_alone_and_the_rest_of_the_group_is_published(desk: Desk) -> None:
    desk.submit(count=3)
    leases = desk.claim()
    ids = [desk.judge(lease) or 0 for lease in leases]
    results = [finished(lease, id_) for lease, id_ in zip(leases, ids, strict=True)]
    results[1] = finished(leases[1], ids[0])  # another job's verdict
    assert desk.queue.publish(results) == [True, False, True]
    assert desk.state(leases[1].job_id) == "queued"
    assert [row["cause"] for row in desk.rows("SELECT cause FROM job_fault")] == ["unverified"]


@pytest.mark.parametrize("cause", [Cause.SIGNER_DOWN, Cause.STORE_FULL, Cause.RAY_GONE, Cause.DATABASE_DOWN])
def test_an_outage_delays_and_never_burns_attempts(desk: Desk, cause: Cause) -> None:
    desk.submit(count=1)
    for _ in range(10):
        (lease,) = desk.claim()
        assert desk.queue.fault(lease, Fault(cause, "the disk is full"), retry_s=5.0) is State.QUEUED
        assert desk.job(lease.job_id)["reason"] == f"{cause}: waits for {WAITS[cause]}", "no place, no host: its kind"
        assert desk.claim() == []
        desk.clock.now += 6
    assert desk.claim()[0].attempt == 11


def test_three_faults_of_its_own_fail_a_job_and_all_are_kept(desk: Desk) -> None:
    batch = desk.submit(count=1)
    for number in range(3):
        (lease,) = desk.claim()
        state = desk.queue.fault(lease, Fault(Cause.RENDER_ERROR, f"error {number}\0"), retry_s=5.0)
        assert desk.claim() == [], "others come first"
        desk.clock.now += 6
    assert state is State.FAILED
    assert desk.states(batch) == {"failed": 1}
    faults = desk.insights.job("ours", lease.job_id)
    assert faults is not None
    assert [fault["detail"] for fault in faults["faults"]] == ["error 0", "error 1", "error 2"]
    assert "error 2" in faults["reason"]


def test_three_gangs_fail_a_job_but_one_gang_failing_thrice_does_not(desk: Desk) -> None:
    desk.submit(count=1)

    def die(gang: str) -> State | None:
        desk.clock.now += 60
        return desk.queue.fault(desk.claim()[0], Fault(Cause.GANG_DIED, "dead"), gang=gang)

    assert [die("a"), die("a"), die("a"), die("b")] == [State.QUEUED] * 4
    assert die("c") is State.FAILED


def test_nodes_that_are_lost_fail_no_job_unless_it_alone_meets_that_again_and_again(desk: Desk) -> None:
    desk.submit(count=1)
    for met in range(2 * STRIKES[Cause.NODE_FAILED]):
        (lease,) = desk.claim()
        fault = Fault(Cause.NODE_FAILED, "preempted", gang=f"gang-{met}")
        assert desk.queue.fault(lease, fault, retry_s=0.0) is State.QUEUED, "a long job on spot nodes"
    for met in range(2, STRIKES[Cause.NODE_FAILED] + 1):
        other = desk.submit(count=1)
        desk.clock.now += 1
        assert desk.publish(claim_of(desk, other)[0])
        (lease,) = desk.claim()
        state = desk.queue.fault(lease, Fault(Cause.NODE_FAILED, "preempted"), retry_s=0.0)
        assert state is (State.FAILED if met == STRIKES[Cause.NODE_FAILED] else State.QUEUED)


@pytest.mark.parametrize("guilty", [True, False])
def test_what_a_job_met_in_a_gang_that_fails_others_as_well_is_not_its_own(desk: Desk, guilty: bool) -> None:
    desk.submit(count=2)
    first, second = desk.claim(limit=2)

    def fails(lease: Lease, cause: Cause, gang: str) -> State | None:
        return desk.queue.fault(lease, Fault(cause, "broken"), gang=gang, retry_s=0.0)

    assert fails(first, Cause.RENDER_ERROR, "a") is State.QUEUED
    assert fails(desk.claim(limit=1)[0], Cause.RENDER_ERROR, "a") is State.QUEUED
    if guilty:
        assert fails(second, Cause.GANG_DIED, "a") is State.QUEUED
    (again,) = [lease for lease in desk.claim(limit=2) if lease.job_id == first.job_id]
    assert fails(again, Cause.RENDER_ERROR, "b") is (State.QUEUED if guilty else State.FAILED)


def test_a_clock_that_jumps_ahead_only_loses_leases(desk: Desk) -> None:
    batch = desk.submit(count=3)
    leases = desk.claim()
    desk.clock.now += 1e6
    assert desk.queue.expire() == 3
    assert not desk.publish(leases[0])
    desk.clock.now -= 2e6
    assert desk.states(batch) == {"queued": 3}


def test_a_component_says_how_it_is_and_the_last_word_stands(desk: Desk) -> None:
    desk.queue.beat("dispatcher-1", "dispatcher", "ready")
    desk.queue.beat("dispatcher-1", "dispatcher", "waiting", "for the signer")
    desk.clock.now += 4
    (said,) = desk.insights.components()
    assert (said["state"], said["detail"], said["age_s"]) == ("waiting", "for the signer", 4.0)


def test_a_component_silent_for_a_day_is_forgotten(desk: Desk) -> None:
    desk.queue.beat("dispatcher-1", "dispatcher", "ready")
    desk.clock.now += 23 * 3600
    desk.queue.beat("dispatcher-2", "dispatcher", "ready")
    assert desk.queue.forget_silent() == 0
    desk.clock.now += 2 * 3600
    assert desk.queue.forget_silent() == 1
    assert [one["name"] for one in desk.insights.components()] == ["dispatcher-2"]


def test_a_move_that_is_not_legal_is_refused(desk: Desk) -> None:
    desk.submit(count=1)
    (lease,) = desk.claim()
    desk.end(lease, State.PUBLISHED)
    artifact = desk.job(lease.job_id)["artifact_id"]
    with pytest.raises(Conflict, match="cannot become approved"):
        desk.queue.decide(lease.job_id, artifact, "approve", "ann", "")
    assert desk.rows("SELECT * FROM decision") == []
