"""Hash lists in the database: on the record, heard by gates, counted; and what an illegal one brings with it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from farm import audit, events, hash_lists, rules
from farm.access import Access
from farm.db import reading, transact
from farm.digests import read
from farm.errors import BadInput, Conflict, Fault, NotFound
from farm.job import Cause, State
from farm.job_queue import NewJob
from farm.ports import Lease, Outcome, Stage
from farm.purge import purge
from farm.store import open_store
from tests.queue.conftest import SPEC, Desk, frame_of, verdict

A, B = (hashlib.sha256(letter).hexdigest() for letter in (b"a", b"b"))


def put(desk: Desk, name: str, *digests: str, kind: str = "sha256", again: bool = False, person: str = "ann") -> None:
    given = {"person": person, "project_id": "ours", "now": desk.clock(), "replace": again}
    transact(desk.engine, lambda connection: hash_lists.put(connection, name, kind, read(digests, kind), **given))  # type: ignore[arg-type]


def remove(desk: Desk, name: str) -> None:
    given = {"person": "bo", "project_id": "ours", "now": desk.clock()}
    transact(desk.engine, lambda connection: hash_lists.remove(connection, name, **given))  # type: ignore[arg-type]


def in_force(desk: Desk, *names: str) -> None:
    document = json.dumps({"name": "p", "hash_lists": [{"name": one} for one in names]}, sort_keys=True)
    transact(desk.engine, lambda connection: rules.put(connection, "active", document, "ann", "ours", desk.clock()))


def version(desk: Desk) -> int:
    return int(desk.rows("SELECT version FROM in_force WHERE role = 'active'")[0]["version"])


def listed(desk: Desk) -> dict[str, dict[str, object]]:
    with reading(desk.engine) as connection:
        return {str(row["name"]): row for row in hash_lists.shown(connection)}


def test_a_list_is_taken_in_replaced_and_removed_on_the_record(desk: Desk) -> None:
    put(desk, "known", A)
    with pytest.raises(Conflict, match="1 digests, of ann"):
        put(desk, "known", A, B)
    put(desk, "known", A, B, again=True, kind="pdq")
    assert [(row["kind"], row["entries"]) for row in listed(desk).values()] == [("pdq", 2)]
    remove(desk, "known")
    assert listed(desk) == {}
    with pytest.raises(NotFound):
        remove(desk, "known")
    audit.seal(desk.engine)
    told = [(row["actor"], row["action"], row["subject"]) for row in audit.read(desk.engine, "ours")]
    assert told == [
        ("ann", "import list", "list known"),
        ("ann", "import list", "list known"),
        ("bo", "remove list", "list known"),
    ]


@pytest.mark.parametrize(
    ("name", "kind", "digests", "person", "field"),
    [
        ("Known", "sha256", [A], "ann", "NAME"),
        ("known", "md5", [A], "ann", "kind"),
        ("known", "sha256", [A, "x"], "ann", "FILE"),
        ("known", "sha256", [], "ann", "FILE"),
        ("known", "sha256", [A], " ", "by"),
    ],
)
def test_what_is_wrong_is_refused_whole(
    desk: Desk, name: str, kind: str, digests: list[str], person: str, field: str
) -> None:
    with pytest.raises(BadInput) as refused:
        put(desk, name, *digests, kind=kind, person=person)
    assert refused.value.field == field
    assert listed(desk) == {}


def test_gates_hear_of_a_list_that_a_policy_names_and_of_no_other(desk: Desk) -> None:
    in_force(desk, "known", "never")
    assert listed(desk)["known"]["entries"] == 0
    with reading(desk.engine) as connection:
        assert hash_lists.missing(connection) == ["known", "never"]
    put(desk, "another", A)
    assert version(desk) == 1
    put(desk, "known", A)
    put(desk, "known", A, again=True)
    assert version(desk) == 2
    put(desk, "known", B, again=True)
    assert version(desk) == 3
    with reading(desk.engine) as connection:
        stands = rules.standing(connection)
        assert [one.name for one in rules.read(connection, stands).lists] == ["known"]
        assert hash_lists.missing(connection) == ["never"]
    remove(desk, "known")
    assert version(desk) == 4
    assert listed(desk)["known"]["named_by"] == ["active"]


def test_hits_are_counted_and_what_goes_to_review_for_a_missing_list_is_none(desk: Desk) -> None:
    put(desk, "known", A)
    desk.submit(count=3)
    hit = replace(verdict("e" * 64, Outcome.BLOCK), concept="known", margin=3.0)
    one, two, three = desk.claim()
    desk.queue.record([(one, hit), (two, replace(hit, illegal=True, stage=Stage.INPUT))])
    desk.queue.record([(three, replace(hit, outcome=Outcome.REVIEW, margin=None))])
    assert (listed(desk)["known"]["found"], listed(desk)["known"]["illegal"]) == (2, 1)


def test_what_is_illegal_is_told_to_operators_alone(desk: Desk) -> None:
    desk.submit(count=1)
    (lease,) = desk.claim()
    illegal = replace(verdict("e" * 64, Outcome.BLOCK), concept="worst", margin=0.0, probability=0.9, illegal=True)
    assert desk.queue.record([(lease, illegal)]) == desk.queue.record([(lease, illegal)])
    assert desk.kinds(lease.job_id).count(events.ILLEGAL) == 1
    assert events.ILLEGAL in events.FOR_OPERATORS
    audit.seal(desk.engine)
    (told,) = [row for row in audit.read(desk.engine, "ours") if row["action"] == "illegal"]
    assert told["data"] == {"list": "worst", "stage": "frame", "sha256": "e" * 64}
    shown = desk.insights.job("ours", lease.job_id)
    assert shown is not None
    assert "worst" not in json.dumps(shown)
    assert '"illegal"' not in json.dumps(shown)
    assert "worst" not in json.dumps(desk.insights.jobs("ours"))


def test_a_block_by_an_illegal_list_reads_like_one_by_any_other(desk: Desk) -> None:
    desk.submit(count=3)
    leases = desk.claim()
    hit = replace(verdict("e" * 64, Outcome.BLOCK), margin=0.0, probability=None, view=None, reason="It is known.")
    one = replace(hit, concept="known")
    worst = replace(hit, concept="worst", illegal=True)
    seen = replace(hit, concept="swords", probability=0.9, view="whole")
    desk.queue.record(list(zip(leases, (one, worst, seen), strict=True)))
    told = []
    for lease in leases:
        job = desk.insights.job("ours", lease.job_id)
        assert job is not None
        (said,) = job["verdicts"]
        told.append({name: said[name] for name in ("stage", "outcome", "concept", "margin", "reason", "view")})
    assert told[0] == told[1]
    assert (told[0]["concept"], told[2]["concept"]) == ("hash_list", "swords")


def test_a_picture_that_turns_out_illegal_is_shown_no_more(desk: Desk) -> None:
    batch = desk.submit(count=2)
    leases = desk.claim()
    for lease in leases:
        assert desk.publish(lease)
    forge_illegal(desk, leases[0])
    shown = [job["sha256"] for job in desk.insights.jobs("ours", batch)]
    assert (shown[0], shown[1] is None) == (None, False)


def forge_illegal(desk: Desk, lease: Lease) -> None:
    """As a rescan writes it."""
    columns = "project_id, job_id, attempt, stage, subject, outcome, policy, encoder, reason, gang, weights, created_at"
    desk.sql(
        f"INSERT INTO verdict ({columns}, illegal) VALUES"
        " ('ours', :job, 1, 'frame', :subject, 'block', 'new', '', '', '', '', 0, :yes)",
        job=lease.job_id,
        subject=frame_of(lease),
        yes=True,
    )


def test_what_is_illegal_leaves_the_store_and_so_do_its_copies(desk: Desk, tmp_path: Path) -> None:
    store, access = open_store(f"file://{tmp_path}/store"), Access(desk.engine, desk.clock)
    access.create_project("theirs")
    bad, good = store.put(b"bad"), store.put(b"good")
    sent = [
        access.add_upload(project, "x", key, "image/png", 1, 1, 3)
        for project, key in [("ours", bad), ("theirs", bad), ("ours", good)]
    ]
    edit = replace(SPEC, edit=True)
    desk.submit(*[NewJob(line=line, spec=edit, upload_id=sent[place]) for line, place in ((1, 0), (2, 2), (3, 0))])
    first, other, later = desk.claim()
    assert purge(desk.engine, store, 0) == 0
    found = verdict("e" * 64, Outcome.BLOCK, Stage.INPUT)
    desk.queue.record([(first, replace(found, illegal=True)), (other, found)])
    assert purge(desk.engine, store, desk.clock() + 1) == 0
    assert purge(desk.engine, store, 0) == 1
    assert [store.has(key) for key in (bad, good)] == [False, True]
    left = desk.rows("SELECT id FROM upload WHERE purged_at IS NULL")
    assert [row["id"] for row in left] == [sent[2]]
    assert purge(desk.engine, store, 0) == 0
    assert [access.upload(*one) is None for one in zip(("ours", "theirs", "ours"), sent, strict=True)] == [1, 1, 0]
    desk.clock.now += 100
    desk.queue.expire()
    assert [lease.reference_key for lease in desk.claim()] == [None]
    assert desk.state(later.job_id) == State.LEASED


def test_a_picture_that_a_new_list_finds_leaves_the_store(desk: Desk, tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/store")
    desk.submit(count=2)
    leases = desk.claim()
    for lease in leases:
        assert desk.publish(lease)
    keys = [row["key"] for row in desk.rows("SELECT key FROM artifact ORDER BY id")]
    desk.sql("UPDATE job SET state = 'unlisted' WHERE id = :id", id=leases[0].job_id)
    for key in keys:
        path = Path(store._path(key))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"a picture")
    forge_illegal(desk, leases[0])
    assert purge(desk.engine, store, 0) == 1
    assert [store.has(key) for key in keys] == [False, True]


def test_a_file_that_cannot_be_deleted_keeps_no_other(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, access = open_store(f"file://{tmp_path}/store"), Access(desk.engine, desk.clock)
    keys = sorted(store.put(data) for data in (b"bad", b"worse"))
    for key in keys:
        sent = access.add_upload("ours", "x", key, "image/png", 1, 1, 3)
        desk.submit(NewJob(line=1, spec=replace(SPEC, edit=True), upload_id=sent))
        (lease,) = desk.claim()
        desk.queue.record([(lease, replace(verdict(key, Outcome.BLOCK, Stage.INPUT), illegal=True))])
    delete = store.delete

    def sticks(key: str) -> None:
        if key == keys[0]:
            raise Fault(Cause.STORE_DOWN, "read only")
        delete(key)

    monkeypatch.setattr(store, "delete", sticks)
    with pytest.raises(Fault, match="read only"):
        purge(desk.engine, store, 0)
    assert [store.has(key) for key in keys] == [True, False]
