"""What was judged before is judged again: exactly what flips is moved, by the states of the design, and only once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError

from farm import events, rescan, rules, unseen
from farm.access import Access
from farm.db import transact
from farm.errors import Conflict, Fault
from farm.job import Cause
from farm.job_queue import NewJob
from farm.ports import Kept, Lease, Outcome, Stage, Verdict
from farm.purge import purge
from farm.rescan import Judged, Tally
from farm.store import open_store
from tests.queue.conftest import SPEC, Desk, finished, frame_of, sha, stored, verdict

OLD, NEW = '{"name": "old"}', '{"name": "new"}'
STANDS = (rules.hash_of(NEW), "")
ALLOW, REVIEW, BLOCK = Outcome.ALLOW, Outcome.REVIEW, Outcome.BLOCK


def put(desk: Desk, document: str) -> None:
    transact(desk.engine, lambda one: rules.put(one, rules.ACTIVE, document, "ann", "ours", desk.clock()))


def judged(lease: Lease, outcome: Outcome = ALLOW, stage: Stage = Stage.FRAME) -> Verdict:
    return replace(verdict(frame_of(lease), outcome, stage), policy=rules.hash_of(OLD))


def publish(desk: Desk, lease: Lease, outcome: Outcome = ALLOW) -> None:
    prompt = replace(judged(lease, stage=Stage.PROMPT), subject=sha(lease.spec.prompt), embedding=None)
    *_, verdict_id = desk.queue.record([(lease, prompt), (lease, judged(lease, outcome))])
    assert verdict_id is not None
    assert desk.queue.publish([finished(lease, verdict_id, outcome)]) == [True]


def approve(desk: Desk, lease: Lease) -> None:
    decision = desk.queue.decide(lease.job_id, desk.job(lease.job_id)["artifact_id"], "approve", "ann", "")
    assert desk.queue.publish_approved(lease.job_id, decision, stored(frame_of(lease), key=sha("approved")))


def judge_by(says: dict[str, Outcome | Fault], *, illegal: bool = False) -> rescan.Judge:
    """By what stands under the subject; what is not named is allowed."""

    def judge(kept: Sequence[Kept]) -> list[Verdict | Fault]:
        return [_verdict(one, says.get(one.subject, ALLOW)) for one in kept]

    def _verdict(one: Kept, outcome: Outcome | Fault) -> Verdict | Fault:
        if isinstance(outcome, Fault):
            return outcome
        said: dict[str, Any] = {"concept": "c", "reason": f"new: {outcome}", "illegal": illegal and outcome is BLOCK}
        return Verdict(one.stage, one.subject, outcome, STANDS[0], "e", **said)

    return judge


def look(desk: Desk, judge: rescan.Judge) -> Tally:
    tally = Tally()
    for page in rescan.pages(desk.engine, judge):
        tally.add(page)
    return tally


def settle(desk: Desk, judge: rescan.Judge) -> list[Judged]:
    pages = rescan.pages(desk.engine, judge, STANDS)
    return [one for page in pages for one in rescan.settle(desk.engine, page, STANDS, "ann", desk.clock)]


@pytest.fixture
def shown(desk: Desk) -> dict[str, Lease]:
    """One job of each way to be seen."""
    put(desk, OLD)
    names = [
        "allowed",
        "published",
        "unlisted",
        "held",
        "held, allowed",
        "held, blocked",
        "approved",
        "approved, blocked",
    ]
    desk.submit(count=len(names) + 2)
    leases = dict(zip([*names, "blocked", "rejected"], desk.claim(20), strict=True))
    for name, lease in leases.items():
        outcome = BLOCK if name == "blocked" else ALLOW if name in names[:3] else REVIEW
        if outcome is BLOCK:
            desk.queue.record([(lease, judged(lease, BLOCK))])
        else:
            publish(desk, lease, outcome)
        if name.startswith("approved"):
            approve(desk, lease)
        if name == "rejected":
            desk.queue.decide(lease.job_id, desk.job(lease.job_id)["artifact_id"], "reject", "ann", "no")
    return leases


def new_policy(shown: dict[str, Lease]) -> dict[str, Outcome | Fault]:
    says = {"published": REVIEW, "unlisted": BLOCK, "held": REVIEW, "held, blocked": BLOCK}
    says |= {"approved": REVIEW, "approved, blocked": BLOCK}
    return {frame_of(shown[name]): outcome for name, outcome in says.items()}


def names_of(shown: dict[str, Lease], jobs: Sequence[int]) -> set[str]:
    return {name for name, lease in shown.items() if lease.job_id in jobs}


def test_a_look_lists_exactly_what_flips_and_changes_nothing(desk: Desk, shown: dict[str, Lease]) -> None:
    before = desk.rows("SELECT * FROM job ORDER BY id")
    tally = look(desk, judge_by(new_policy(shown)))
    flips = {next(iter(names_of(shown, [one["job"]]))): one for one in tally.flips}
    assert {name: (one["from"], one["to"], one["becomes"]) for name, one in flips.items()} == {
        "published": ("allow", "review", "held"),
        "unlisted": ("allow", "block", "unlisted"),
        "held, allowed": ("review", "allow", "held"),
        "held, blocked": ("review", "block", "held"),
        "approved, blocked": ("review", "block", "published"),
    }
    assert tally.judged == 9
    assert tally.counts["allow -> review, published -> held"] == 1
    assert tally.counts["review -> block, stays as a person decided"] == 1
    assert flips["published"]["artifact"] == desk.job(shown["published"].job_id)["artifact_id"]
    assert desk.rows("SELECT * FROM job ORDER BY id") == before
    assert desk.rows("SELECT * FROM verdict WHERE policy = :new", new=STANDS[0]) == []


def test_an_activation_moves_exactly_those_and_leaves_a_second_verdict(desk: Desk, shown: dict[str, Lease]) -> None:
    was = {name: desk.state(lease.job_id) for name, lease in shown.items()}
    put(desk, NEW)
    assert rescan.count(desk.engine, STANDS) == 9
    assert len(settle(desk, judge_by(new_policy(shown)))) == 9
    assert rescan.count(desk.engine, STANDS) == 0
    expected = was | {"published": "held", "unlisted": "unlisted"}
    assert {name: desk.state(lease.job_id) for name, lease in shown.items()} == expected
    moved = desk.insights.job("ours", shown["published"].job_id)
    assert moved is not None
    assert [(one["stage"], one["outcome"]) for one in moved["verdicts"]] == [
        ("prompt", "allow"),
        ("frame", "allow"),
        ("frame", "review"),
    ]
    assert (moved["reason"], moved["verdict"]) == ("new: review", "review")
    assert desk.kinds(shown["published"].job_id)[-1] == "held"
    (told,) = desk.rows("SELECT actor, data FROM audit WHERE action = 'rescan'")
    assert told["actor"] == "ann"
    assert settle(desk, judge_by(new_policy(shown))) == []


def test_a_picture_held_again_is_published_by_a_person_alone(desk: Desk, shown: dict[str, Lease]) -> None:
    """Law 1, by direct SQL: neither the first verdict nor a later one that allows brings back what a rescan took."""
    put(desk, NEW)
    settle(desk, judge_by(new_policy(shown)))
    for name in ("published", "unlisted", "held, allowed"):
        with pytest.raises(IntegrityError, match="law 1"):
            desk.sql("UPDATE job SET state = 'published' WHERE id = :id", id=shown[name].job_id)
    approve(desk, shown["published"])
    assert desk.state(shown["published"].job_id) == "published"


def test_broken_off_in_the_middle_it_goes_on_where_it_stopped(
    desk: Desk, shown: dict[str, Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rescan, "PAGE", 3)
    put(desk, NEW)
    judge = judge_by(new_policy(shown))
    first = next(rescan.pages(desk.engine, judge, STANDS))
    rescan.settle(desk.engine, first, STANDS, "ann", desk.clock)
    assert rescan.count(desk.engine, STANDS) == 6
    assert {one.picture.job_id for one in settle(desk, judge)}.isdisjoint(one.picture.job_id for one in first)
    assert desk.rows("SELECT count(*) AS n FROM verdict WHERE policy = :new", new=STANDS[0])[0]["n"] == 9
    assert desk.state(shown["unlisted"].job_id) == "unlisted"


def test_half_a_page_is_never_there(desk: Desk, shown: dict[str, Lease], monkeypatch: pytest.MonkeyPatch) -> None:
    put(desk, NEW)

    def breaks(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("farm.audit.append", breaks)
    with pytest.raises(KeyboardInterrupt):
        settle(desk, judge_by(new_policy(shown)))
    assert rescan.count(desk.engine, STANDS) == 9
    assert desk.state(shown["published"].job_id) == "published"


def test_what_cannot_be_judged_again_stays_and_is_told(desk: Desk, shown: dict[str, Lease]) -> None:
    put(desk, NEW)
    judge = judge_by({frame_of(shown["published"]): Fault(Cause.GATE_ERROR, "of another encoder")})
    assert look(desk, judge).unjudged == {"of another encoder": 1}
    assert len(settle(desk, judge)) == 8
    assert rescan.count(desk.engine, STANDS) == 1
    assert desk.state(shown["published"].job_id) == "published"


@pytest.mark.parametrize("part", [Stage.PROMPT, Stage.INPUT])
def test_prompt_and_input_are_judged_again_as_well(desk: Desk, part: Stage) -> None:
    put(desk, OLD)
    desk.submit(count=1)
    (lease,) = desk.claim()
    desk.queue.record([(lease, replace(judged(lease, stage=part), subject=sha("part")))])
    publish(desk, lease)
    put(desk, NEW)
    settle(desk, judge_by({sha("part"): BLOCK}))
    assert desk.state(lease.job_id) == "unlisted"
    said = desk.rows("SELECT stage, outcome FROM verdict WHERE policy = :new ORDER BY stage", new=STANDS[0])
    assert [tuple(row.values()) for row in said] == [("frame", "allow"), (str(part), "block")]


@pytest.mark.parametrize(("says", "illegal", "state"), [(REVIEW, False, "held"), (BLOCK, True, "unlisted")])
def test_a_frame_that_cannot_be_judged_goes_with_its_input_once(
    desk: Desk, says: Outcome, illegal: bool, state: str
) -> None:
    put(desk, OLD)
    desk.submit(count=1)
    (lease,) = desk.claim()
    desk.queue.record([(lease, replace(judged(lease, stage=Stage.INPUT), subject=sha("part")))])
    publish(desk, lease)
    put(desk, NEW)
    fault = Fault(Cause.GATE_ERROR, "of another encoder")
    parts: dict[str, Outcome | Fault] = {sha("part"): says, frame_of(lease): fault, sha(lease.spec.prompt): fault}
    judge = judge_by(parts, illegal=illegal)
    assert len(settle(desk, judge)) == 1
    assert desk.state(lease.job_id) == state
    assert settle(desk, judge) == []  # or `farm policy rescan` would never end


def test_a_doubt_about_the_prompt_that_is_over_is_told_once(desk: Desk) -> None:
    put(desk, OLD)
    desk.submit(count=1)
    (lease,) = desk.claim()
    desk.queue.record([(lease, replace(judged(lease, REVIEW, Stage.PROMPT), subject=sha("part")))])
    publish(desk, lease)
    assert look(desk, judge_by({})).counts == {"review -> allow, stays held": 1}
    put(desk, NEW)
    settle(desk, judge_by({}))
    assert look(desk, judge_by({})).counts == {}


def test_what_was_drawn_from_a_file_that_left_the_store_is_judged_on(desk: Desk, tmp_path: Path) -> None:
    put(desk, OLD)
    store, access = open_store(f"file://{tmp_path}/store"), Access(desk.engine, desk.clock)
    key = store.put(b"a picture")
    sent = access.add_upload("ours", "x", key, "image/png", 30, 20, 9)
    desk.submit(*[NewJob(line=line, spec=replace(SPEC, edit=True), upload_id=sent) for line in (1, 2)])
    first, other = desk.claim()
    said = replace(judged(first, stage=Stage.INPUT), subject=sha("part"))
    desk.queue.record([(first, said)])
    publish(desk, first)
    desk.queue.record([(other, replace(said, outcome=BLOCK, illegal=True))])
    assert purge(desk.engine, store, 0) == 1
    ((one,),) = rescan.pages(desk.engine, judge_by({sha("part"): BLOCK}))
    found = {kept.stage: kept for kept in one.picture.kept}[Stage.INPUT]
    assert (found.width, found.height, found.file_sha256) == (30, 20, key)


def test_what_nobody_may_see_leaves_the_reviewers_too(desk: Desk, shown: dict[str, Lease]) -> None:
    put(desk, NEW)
    settle(desk, judge_by({frame_of(one): BLOCK for one in shown.values()}, illegal=True))
    found = {name: desk.state(lease.job_id) for name, lease in shown.items()}
    assert {found[name] for name in ("allowed", "published", "approved")} == {"unlisted"}
    assert {found[name] for name in ("held", "held, allowed", "rejected")} == {"rejected"}
    told = desk.rows("SELECT job_id FROM event WHERE kind = :kind ORDER BY job_id", kind=events.ILLEGAL)
    assert names_of(shown, [row["job_id"] for row in told]) == shown.keys() - {"blocked"}


def test_what_was_sent_for_a_job_that_ended_is_held_against_the_lists(desk: Desk, tmp_path: Path) -> None:
    put(desk, OLD)
    store, access = open_store(f"file://{tmp_path}/store"), Access(desk.engine, desk.clock)
    keys = [store.put(data) for data in (b"known", b"another")]
    for key in keys:
        sent = access.add_upload("ours", "x", key, "image/png", 30, 20, 9)
        desk.submit(NewJob(line=1, spec=replace(SPEC, edit=True), upload_id=sent))
        (lease,) = desk.claim()
        desk.queue.record([(lease, replace(judged(lease, stage=Stage.INPUT), subject=sha(key)))])
        desk.queue.record([(lease, judged(lease, BLOCK))])
    put(desk, NEW)
    judge = judge_by({sha(keys[0]): BLOCK}, illegal=True)
    with pytest.raises(Conflict, match="another policy"):
        unseen.find(desk.engine, judge, (rules.hash_of(OLD), ""), desk.clock)
    assert [unseen.find(desk.engine, judge, STANDS, desk.clock) for _ in range(2)] == [1, 0]
    assert len(desk.rows("SELECT job_id FROM event WHERE kind = :kind", kind=events.ILLEGAL)) == 1
    assert purge(desk.engine, store, 0) == 1
    assert [store.has(key) for key in keys] == [False, True]


def test_an_approval_does_not_outlast_a_list_of_what_nobody_may_see(desk: Desk, shown: dict[str, Lease]) -> None:
    lease = shown["held"]
    decision = desk.queue.decide(lease.job_id, desk.job(lease.job_id)["artifact_id"], "approve", "ann", "")
    put(desk, NEW)
    settle(desk, judge_by({frame_of(lease): BLOCK}, illegal=True))
    assert desk.state(lease.job_id) == "rejected"
    assert not desk.queue.publish_approved(lease.job_id, decision, stored(frame_of(lease), key=sha("approved")))


@pytest.mark.parametrize("stage", [Stage.FRAME, Stage.PROMPT])
def test_what_a_rescan_blocks_is_followed_as_any_block(desk: Desk, stage: Stage) -> None:
    put(desk, OLD)
    desk.submit(NewJob(line=1, spec=SPEC), NewJob(line=1, spec=replace(SPEC, seed=2)))
    first, second = desk.claim()
    publish(desk, first)
    publish(desk, second)
    strict = '{"name": "new", "siblings": "hold"}'
    put(desk, strict)
    stands = (rules.hash_of(strict), "")

    def judge(kept: Sequence[Kept]) -> list[Verdict | Fault]:
        mine = frame_of(first)
        ours = [one.stage is stage and (one.subject == mine or stage is Stage.PROMPT) for one in kept]
        ours = [bad and not (stage is Stage.PROMPT and place >= 2) for place, bad in enumerate(ours)]
        return [
            Verdict(one.stage, one.subject, BLOCK if bad else ALLOW, stands[0], "e", concept="c")
            for one, bad in zip(kept, ours, strict=True)
        ]

    (page,) = rescan.pages(desk.engine, judge, stands)
    rescan.settle(desk.engine, page, stands, "ann", desk.clock)
    assert desk.state(first.job_id) == "unlisted"
    assert desk.state(second.job_id) == ("held" if stage is Stage.FRAME else "published")


def test_the_children_of_what_is_withdrawn_follow_it(desk: Desk) -> None:
    put(desk, OLD)
    desk.submit(count=2)
    held, unlisted = desk.claim()
    for parent in (held, unlisted):
        publish(desk, parent)
        desk.submit(*(NewJob(line=line, spec=replace(SPEC, edit=True), parent_job_id=parent.job_id) for line in (1, 2)))
    drawn = [lease for lease in desk.claim() if lease.parent_job_id in (held.job_id, unlisted.job_id)][0::2]
    put(desk, NEW)
    settle(desk, judge_by({frame_of(held): REVIEW, frame_of(unlisted): BLOCK}))
    for parent, state in ((held, "waiting"), (unlisted, "cancelled")):
        children = desk.rows("SELECT state, reason FROM job WHERE parent_job_id = :id", id=parent.job_id)
        assert {row["state"] for row in children} == {state}
        assert all(str(parent.job_id) in row["reason"] for row in children)
    for late in drawn:
        assert desk.judge(late) is None


def test_another_policy_put_in_force_meanwhile_ends_the_rescan(desk: Desk, shown: dict[str, Lease]) -> None:
    put(desk, NEW)
    (page,) = rescan.pages(desk.engine, judge_by(new_policy(shown)), STANDS)
    put(desk, OLD)
    with pytest.raises(Conflict, match="another policy"):
        rescan.settle(desk.engine, page, STANDS, "ann", desk.clock)
    assert desk.state(shown["published"].job_id) == "published"


def test_a_picture_that_a_person_decides_on_meanwhile_is_looked_at_again(desk: Desk, shown: dict[str, Lease]) -> None:
    put(desk, NEW)
    judge = judge_by(new_policy(shown))
    (page,) = rescan.pages(desk.engine, judge, STANDS)
    approve(desk, shown["held"])
    assert len(rescan.settle(desk.engine, page, STANDS, "ann", desk.clock)) == 8
    assert len(settle(desk, judge)) == 1
    assert desk.state(shown["held"].job_id) == "published"


def test_two_rescans_at_once_do_it_once(desk: Desk, shown: dict[str, Lease], another: Callable[[], Engine]) -> None:
    put(desk, NEW)
    judge = judge_by(new_policy(shown))
    desks = [Desk(another(), desk.clock) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        sure = [one for some in pool.map(lambda one: settle(one, judge), desks) for one in some]
    assert {one.picture.job_id for one in sure} == {lease.job_id for name, lease in shown.items() if name != "blocked"}
    assert desk.rows("SELECT count(*) AS n FROM verdict WHERE policy = :new", new=STANDS[0])[0]["n"] == 9
    assert desk.kinds(shown["unlisted"].job_id).count("unlisted") == 1


def test_a_later_policy_that_allows_again_moves_nothing_by_itself(desk: Desk, shown: dict[str, Lease]) -> None:
    put(desk, NEW)
    settle(desk, judge_by(new_policy(shown)))
    newest = '{"name": "newest"}'
    put(desk, newest)
    stands = (rules.hash_of(newest), "")

    def allow(kept: Sequence[Kept]) -> list[Verdict | Fault]:
        return [Verdict(one.stage, one.subject, ALLOW, stands[0], "e") for one in kept]

    (page,) = rescan.pages(desk.engine, allow, stands)
    rescan.settle(desk.engine, page, stands, "ann", desk.clock)
    tally = Tally()
    tally.add(page)
    assert tally.counts["review -> allow, stays held"] == 2
    assert desk.state(shown["published"].job_id) == "held"
