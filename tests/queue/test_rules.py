"""What is in force: put there on the record, heard by gates, and asked by every publication."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import pytest
from sqlalchemy import Engine

from farm import rules
from farm.db import reading, transact
from farm.errors import BadInput, NotFound
from farm.job_queue import JobQueue
from farm.ports import Lease, Rules, Stage
from farm.rules import ACTIVE, SHADOW, Herald
from tests.fakes import WordGate
from tests.queue.conftest import Desk, finished, frame_of, verdict


def document(name: str, *lists: str) -> str:
    return json.dumps({"name": name, "hash_lists": [{"name": one} for one in lists]}, sort_keys=True)


OLD, NEW = document("old"), document("new")


def put(desk: Desk, text: str, role: str = ACTIVE, *, first: bool = False) -> bool:
    return transact(
        desk.engine, lambda connection: rules.put(connection, role, text, "ann", "ours", desk.clock(), first=first)
    )


def put_list(desk: Desk, name: str, digests: bytes) -> bool:
    columns = "name, kind, digests, entries, sha256, person, updated_at"
    row = {"name": name, "digests": digests, "sha256": hashlib.sha256(digests).hexdigest()}
    desk.sql("DELETE FROM hash_list WHERE name = :name", name=name)
    desk.sql(f"INSERT INTO hash_list ({columns}) VALUES (:name, 'pdq', :digests, 1, :sha256, 'ann', 0)", **row)
    return transact(desk.engine, lambda connection: rules.lists_changed(connection, "ann", desk.clock()))


def standing(desk: Desk) -> dict[str, str]:
    with reading(desk.engine) as connection:
        return {role: one.document for role, one in rules.standing(connection).items()}


def judged(desk: Desk, lease: Lease, text: str, lists: str = "", stage: Stage = Stage.FRAME) -> int:
    by = replace(verdict(frame_of(lease), stage=stage), policy=rules.hash_of(text), lists=lists)
    verdict_id = desk.queue.record([(lease, by)])[0]
    assert verdict_id is not None
    return verdict_id


def test_a_policy_is_put_in_force_once_and_on_the_record(desk: Desk) -> None:
    assert put(desk, OLD, first=True)
    assert not put(desk, NEW, first=True)
    assert put(desk, NEW)
    assert not put(desk, NEW)
    assert put(desk, OLD, SHADOW)
    assert standing(desk) == {ACTIVE: NEW, SHADOW: OLD}
    told = desk.rows("SELECT actor, action, subject, data FROM audit WHERE action LIKE 'policy%' ORDER BY id")
    assert [row["action"] for row in told] == ["policy active", "policy active", "policy shadow"]
    assert {row["actor"] for row in told} == {"ann"}
    assert told[1]["subject"] == f"policy {rules.hash_of(NEW)}"
    assert transact(desk.engine, lambda connection: rules.end_shadow(connection, "ann", "ours", 0.0))
    assert not transact(desk.engine, lambda connection: rules.end_shadow(connection, "ann", "ours", 0.0))
    assert standing(desk) == {ACTIVE: NEW}
    with pytest.raises(BadInput, match="who answers"):
        transact(desk.engine, lambda connection: rules.put(connection, ACTIVE, OLD, " ", "ours", 0.0))


def test_a_policy_is_found_by_the_beginning_of_its_hash(desk: Desk) -> None:
    put(desk, OLD)
    with reading(desk.engine) as connection:
        assert rules.find(connection, rules.hash_of(OLD)[:8]) == OLD
        for unknown in (rules.hash_of(NEW), rules.hash_of(OLD)[:3], "%%%%%%%%", ""):
            with pytest.raises(NotFound, match="no policy"):
                rules.find(connection, unknown)


def test_what_was_judged_by_another_policy_goes_back_and_nobody_pays(desk: Desk) -> None:
    put(desk, OLD)
    desk.submit(count=2)
    first, second = desk.claim()
    results = [finished(lease, judged(desk, lease, text)) for lease, text in ((first, OLD), (second, OLD))]
    assert desk.queue.publish(results[:1]) == [True]
    put(desk, NEW)
    assert desk.queue.publish(results[1:]) == [False]
    job = desk.job(second.job_id)
    assert (job["state"], job["artifact_id"]) == ("queued", None)
    assert "policy was changed" in job["reason"]
    assert desk.rows("SELECT * FROM job_fault") == []
    assert "superseded" not in desk.kinds()
    assert desk.claim() == []
    desk.clock.now += rules.HEARD_S
    (again,) = desk.claim()
    assert desk.queue.publish([finished(again, judged(desk, again, NEW))]) == [True]


@pytest.mark.parametrize("stage", [Stage.PROMPT, Stage.INPUT])
def test_prompt_and_input_count_as_the_frame_does(desk: Desk, stage: Stage) -> None:
    put(desk, NEW)
    desk.submit(count=1)
    (lease,) = desk.claim()
    judged(desk, lease, OLD, stage=stage)
    result = finished(lease, judged(desk, lease, NEW))
    assert desk.queue.publish([result]) == [False]
    assert desk.state(lease.job_id) == "queued"


def test_a_preview_judged_before_does_not_count(desk: Desk) -> None:
    put(desk, NEW)
    desk.submit(count=1)
    (lease,) = desk.claim()
    judged(desk, lease, OLD, stage=Stage.PREVIEW)
    assert desk.queue.publish([finished(lease, judged(desk, lease, NEW))]) == [True]


def test_a_list_that_was_imported_meanwhile_counts_as_another_policy(desk: Desk) -> None:
    listed = document("listed", "known")
    put(desk, listed)
    desk.submit(count=2)
    first, second = desk.claim()
    with reading(desk.engine) as connection:
        missing = rules.in_force(connection)
    assert missing is not None
    judged(desk, first, listed, stage=Stage.PROMPT)  # prompts are judged by no list
    results = [finished(lease, judged(desk, lease, listed, missing[1])) for lease in (first, second)]
    assert desk.queue.publish(results[:1]) == [True]
    assert put_list(desk, "known", b"a" * 32)
    assert not put_list(desk, "another", b"b" * 32)
    assert desk.queue.publish(results[1:]) == [False]
    with reading(desk.engine) as connection:
        found = rules.read(connection, rules.standing(connection))
        now = rules.in_force(connection)
    assert [one.digests for one in found.lists] == [b"a" * 32]
    assert now == (rules.hash_of(listed), found.held(["known"]))
    assert missing[1] not in ("", found.held(["known"]))


@dataclass
class Listener(WordGate):
    heard: list[Rules] = field(default_factory=list)

    def use(self, rules: Rules) -> None:
        self.heard.append(rules)


def test_a_gate_hears_of_every_change_and_of_nothing_else(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    gate = Listener()
    herald = Herald(desk.engine, gate, OLD, "ours", desk.clock)
    for _ in range(3):
        herald.announce()
    assert (standing(desk), gate.heard) == ({ACTIVE: OLD}, [Rules(OLD)])
    put(desk, document("shadow", "known"), SHADOW)
    herald.announce()
    put_list(desk, "known", b"a" * 32)
    herald.announce()
    put(desk, NEW)
    herald.announce()
    assert [(one.policy, bool(one.shadow), len(one.lists)) for one in gate.heard] == [
        (OLD, False, 0),
        (OLD, True, 0),
        (OLD, True, 1),
        (NEW, True, 1),
    ]
    assert "the settings name" not in caplog.text
    later = Listener()
    Herald(desk.engine, later, OLD, "ours", desk.clock).announce()
    assert later.heard == gate.heard[-1:]
    assert "the settings name the policy old" in caplog.text


def test_a_farm_without_a_policy_asks_for_none(desk: Desk) -> None:
    gate = Listener()
    herald = Herald(desk.engine, gate)
    herald.announce()
    assert (herald.heard, gate.heard, standing(desk)) == (True, [], {})


def test_publication_holds_an_activation_up_and_is_held_up_by_one(desk: Desk, another: Callable[[], Engine]) -> None:
    put(desk, OLD)
    desk.submit(count=1)
    (lease,) = desk.claim()
    result = finished(lease, judged(desk, lease, OLD))
    operator = Desk(another(), desk.clock)
    with ThreadPoolExecutor(1) as pool:
        with desk.engine.execution_options(writes=True).begin() as connection:
            rules.in_force(connection)  # as a publication does
            activation = pool.submit(put, operator, NEW)
            with pytest.raises(TimeoutError):
                activation.result(0.3)
        assert activation.result(10)
        with operator.engine.execution_options(writes=True).begin() as connection:
            rules.put(connection, ACTIVE, OLD, "ann", "ours", 0.0)
            rules.put(connection, ACTIVE, document("newest"), "ann", "ours", 0.0)
            publication = pool.submit(desk.queue.publish, [result])
            with pytest.raises(TimeoutError):
                publication.result(0.3)
        assert publication.result(10) == [False]
    assert desk.state(lease.job_id) == "queued"


def test_nothing_is_published_by_the_old_policy_once_the_new_one_is_committed(
    desk: Desk, another: Callable[[], Engine]
) -> None:
    put(desk, OLD)
    desk.submit(count=60)
    results = [finished(lease, judged(desk, lease, OLD)) for lease in desk.claim(60)]
    begun, queues = threading.Event(), [JobQueue(another(), desk.clock) for _ in range(3)]
    published = "SELECT count(*) AS n FROM job WHERE state = 'published'"

    def publish(part: int) -> int:
        done = 0
        for result in results[part::3]:
            done += sum(queues[part].publish([result]))
            begun.set()
        return done

    with ThreadPoolExecutor(3) as pool:
        parts = [pool.submit(publish, part) for part in range(3)]
        assert begun.wait(10)
        put(desk, NEW)
        (then,) = desk.rows(published)
        done = sum(part.result(60) for part in parts)
    (at_last,) = desk.rows(published)
    assert then["n"] == at_last["n"] == done
    assert desk.states(1) == {"published": done} | ({"queued": 60 - done} if done < 60 else {})
