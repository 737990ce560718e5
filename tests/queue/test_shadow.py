"""What the policy in shadow would have said is kept beside the verdicts, counted, and changes nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from farm import rules, shadow
from farm.db import reading, transact
from farm.ports import Lease, Outcome, Stage, Verdict
from tests.queue.conftest import Desk, frame_of, sha, verdict

ALLOW, REVIEW, BLOCK = Outcome.ALLOW, Outcome.REVIEW, Outcome.BLOCK
BESIDE = sha("beside")


def said(
    lease: Lease, outcome: Outcome, would: Outcome | None, stage: Stage = Stage.FRAME, concept: str = "c"
) -> Verdict:
    plain = verdict(frame_of(lease), outcome, stage)
    if would is None:
        return plain
    return replace(plain, shadow=replace(plain, outcome=would, policy=BESIDE, concept=concept, embedding=None))


def matrix(desk: Desk) -> list[tuple[Any, ...]]:
    with reading(desk.engine) as connection:
        rows = shadow.report(connection, BESIDE)
    assert {row["against"] for row in rows} <= {sha("policy")}
    return [tuple(row[name] for name in ("stage", "from", "to", "concept", "count")) for row in rows]


def test_it_is_counted_by_stage_direction_and_concept(desk: Desk) -> None:
    desk.submit(count=6)
    leases = desk.claim()
    pairs = [(ALLOW, ALLOW), (ALLOW, REVIEW), (ALLOW, REVIEW), (BLOCK, ALLOW), (ALLOW, BLOCK), (ALLOW, None)]
    desk.queue.record([(lease, said(lease, *pair)) for lease, pair in zip(leases, pairs, strict=True)])
    desk.queue.record([(leases[0], said(leases[0], ALLOW, BLOCK, Stage.PROMPT, "words"))])
    desk.queue.record([(leases[0], said(leases[0], ALLOW, BLOCK, Stage.PREVIEW))])
    assert matrix(desk) == [
        ("frame", "allow", "allow", "c", 1),
        ("frame", "allow", "block", "c", 1),
        ("frame", "allow", "review", "c", 2),
        ("frame", "block", "allow", "c", 1),
        ("prompt", "allow", "block", "words", 1),
    ]
    assert desk.states(1) == {"leased": 5, "blocked": 1}


def test_what_was_said_twice_is_kept_once(desk: Desk) -> None:
    desk.submit(count=1)
    (lease,) = desk.claim()
    (first,) = desk.queue.record([(lease, said(lease, ALLOW, BLOCK))])
    assert desk.queue.record([(lease, said(lease, ALLOW, BLOCK))]) == [first]
    other = replace(said(lease, ALLOW, REVIEW), lists="of another day")
    assert desk.queue.record([(lease, other)]) != [None]
    assert matrix(desk) == [("frame", "allow", "block", "c", 1)]


def test_what_it_could_not_judge_is_counted_from_when_it_stands_there(desk: Desk) -> None:
    document = '{"name": "beside"}'

    def left_out() -> int:
        with reading(desk.engine) as connection:
            return shadow.left_out(connection, rules.hash_of(document))

    desk.submit(count=4)
    early, late, judged, previewed = desk.claim()
    desk.queue.record([(early, said(early, ALLOW, None))])
    assert left_out() == 0
    transact(desk.engine, lambda one: rules.put(one, rules.SHADOW, document, "ann", "ours", desk.clock()))
    desk.clock.now += 2 * rules.HEARD_S
    beside = said(judged, ALLOW, BLOCK)
    assert beside.shadow is not None
    beside = replace(beside, shadow=replace(beside.shadow, policy=rules.hash_of(document)))
    preview = said(previewed, ALLOW, None, Stage.PREVIEW)
    desk.queue.record([(late, said(late, ALLOW, None)), (judged, beside), (previewed, preview)])
    again = replace(said(early, REVIEW, None), policy=sha("another"))
    desk.queue.record([(early, again)])
    assert left_out() == 1


def test_a_result_that_comes_too_late_is_not_counted(desk: Desk) -> None:
    desk.submit(count=1)
    (lease,) = desk.claim()
    desk.queue.cancel_job(lease.job_id, "ann")
    assert desk.queue.record([(lease, said(lease, ALLOW, BLOCK))]) == [None]
    assert matrix(desk) == []
