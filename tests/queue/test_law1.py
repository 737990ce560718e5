"""Law 1, tried with direct SQL on both databases: nothing unjudged or unsigned is ever published or held."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from farm import audit
from farm.access import Access
from farm.db import required_triggers, triggers
from farm.job import State
from farm.job_queue import NewJob
from farm.ports import Lease, Outcome, Stage
from tests.fakes import StampSigner
from tests.queue.conftest import SPEC, START, Desk, finished, frame_of, sha, stored, verdict

ARTIFACT = """INSERT INTO artifact (project_id, job_id, verdict_id, decision_id, frame_sha256, manifest_sha256,
    verified_at, key, label, mime, width, height, bytes, created_at)
    VALUES (:project_id, :job_id, :verdict_id, :decision_id, :frame, :manifest, :verified, 'k', 'l', 'm', 1, 1, 1, 0)"""
PUBLISH = "UPDATE job SET state = :state, artifact_id = (SELECT max(id) FROM artifact) WHERE id = :id"


def forge(desk: Desk, lease: Lease, state: str = "published", **lies: object) -> None:
    """Publish by hand, with the right facts except for the lies."""
    facts: dict[str, object] = {"project_id": "ours", "job_id": lease.job_id, "decision_id": None, "manifest": "m"}
    facts |= {"frame": frame_of(lease), "verified": START, "verdict_id": None}
    facts |= lies
    desk.sql(ARTIFACT, **facts)
    desk.sql(PUBLISH, state=state, id=lease.job_id)


@pytest.fixture
def lease(desk: Desk) -> Lease:
    desk.submit(count=2)
    return desk.claim()[0]


def test_the_triggers_stand_after_migration(desk: Desk) -> None:
    assert triggers(desk.engine) == required_triggers(desk.engine)
    assert {"law1_published_insert", "law1_published_update", "law1_held_insert", "law1_held_update"} <= triggers(
        desk.engine
    )


def test_the_forger_publishes_when_nothing_is_a_lie(desk: Desk, lease: Lease) -> None:
    """Without this, the refusals below would prove nothing."""
    forge(desk, lease, verdict_id=desk.judge(lease))
    assert desk.state(lease.job_id) == "published"


@pytest.mark.parametrize("state", ["published", "held"])
@pytest.mark.parametrize(
    "lies",
    [
        {"verified": None},
        {"manifest": ""},
        {"frame": "0" * 64},
        {"verdict_id": 999},
        {"project_id": "theirs"},
    ],
)
def test_an_artifact_with_one_lie_is_refused(desk: Desk, lease: Lease, state: str, lies: dict[str, object]) -> None:
    with pytest.raises(IntegrityError, match="law 1"):
        forge(desk, lease, state, **({"verdict_id": desk.judge(lease)} | lies))
    assert desk.state(lease.job_id) == "leased"


@pytest.mark.parametrize("state", ["published", "held"])
def test_no_artifact_at_all_is_refused(desk: Desk, lease: Lease, state: str) -> None:
    desk.judge(lease)
    with pytest.raises(IntegrityError, match="law 1"):
        desk.sql("UPDATE job SET state = :state WHERE id = :id", state=state, id=lease.job_id)


def test_a_job_cannot_be_born_published(desk: Desk, lease: Lease) -> None:
    columns = "project_id, batch_id, lane_id, line, state, model, prompt, seed, width, height, steps, guidance, format"
    columns += ', edit, priority, attempt, forgiven, not_before, reason, created_at, updated_at, "index"'
    for state in ("published", "held"):
        with pytest.raises(IntegrityError, match="law 1"):
            desk.sql(
                f"INSERT INTO job ({columns}) SELECT {columns.replace('state', ':state')} FROM job LIMIT 1", state=state
            )


def test_another_jobs_verdict_and_artifact_do_not_serve(desk: Desk, lease: Lease) -> None:
    desk.queue.expire()
    other = desk.submit(count=1)
    (theirs,) = [one for one in desk.claim() if one.batch_id == other]
    assert desk.publish(theirs)
    with pytest.raises(IntegrityError, match="law 1"):
        forge(desk, lease, verdict_id=desk.job(theirs.job_id)["verdict_id"], frame=frame_of(theirs))
    with pytest.raises(IntegrityError, match="law 1"):
        desk.sql(
            "UPDATE job SET state = 'published', artifact_id = :artifact WHERE id = :id",
            artifact=desk.job(theirs.job_id)["artifact_id"],
            id=lease.job_id,
        )


@pytest.mark.parametrize("outcome", [Outcome.REVIEW, Outcome.BLOCK])
def test_a_verdict_that_does_not_allow_does_not_publish(desk: Desk, lease: Lease, outcome: Outcome) -> None:
    with pytest.raises(IntegrityError, match="law 1"):
        forge(desk, lease, verdict_id=desk.judge(lease, outcome))


def test_an_allowing_verdict_on_the_prompt_is_not_one_on_the_frame(desk: Desk, lease: Lease) -> None:
    (said,) = desk.queue.record([(lease, verdict(frame_of(lease), stage=Stage.PROMPT))])
    with pytest.raises(IntegrityError, match="law 1"):
        forge(desk, lease, verdict_id=said)


def test_an_allowed_frame_of_a_doubted_prompt_is_not_published(desk: Desk, lease: Lease) -> None:
    desk.queue.record([(lease, verdict("d" * 64, Outcome.REVIEW, Stage.PROMPT))])
    with pytest.raises(IntegrityError, match="law 1"):
        forge(desk, lease, verdict_id=desk.judge(lease))


def test_a_published_job_cannot_be_turned_to_another_artifact(desk: Desk, lease: Lease) -> None:
    assert desk.publish(lease)
    with pytest.raises(IntegrityError, match="law 1"):
        forge(desk, lease, verdict_id=desk.job(lease.job_id)["verdict_id"], frame="1" * 64)
    with pytest.raises(IntegrityError, match="law 1"):
        desk.sql("UPDATE job SET artifact_id = NULL WHERE id = :id", id=lease.job_id)


@pytest.mark.parametrize(
    "change",
    [
        "key = 'other'",
        "frame_sha256 = 'x'",
        "manifest_sha256 = 'x'",
        "verified_at = NULL",
        "verdict_id = 7",
        "bytes = 1",
    ],
)
@pytest.mark.parametrize("state", [State.PUBLISHED, State.HELD])
def test_the_artifact_of_a_published_or_held_job_is_kept_as_it_is(
    desk: Desk, lease: Lease, change: str, state: State
) -> None:
    desk.end(lease, state)
    with pytest.raises(IntegrityError, match="artifact"):
        desk.sql(f"UPDATE artifact SET {change}")
    with pytest.raises(IntegrityError, match="artifact"):
        desk.sql("DELETE FROM artifact")


def test_an_artifact_nobody_refers_to_may_go(desk: Desk, lease: Lease) -> None:
    desk.sql(
        ARTIFACT,
        project_id="ours",
        job_id=lease.job_id,
        verdict_id=1,
        decision_id=None,
        frame="f",
        manifest="m",
        verified=None,
    )
    assert desk.sql("UPDATE artifact SET verified_at = 5") == 1
    assert desk.sql("DELETE FROM artifact") == 1


SHADOWS = """CREATE TEMP TABLE {table} AS SELECT * FROM {real}.{table} {rows}"""


def shadowed(desk: Desk, statements: list[str], shadows: dict[str, str], **values: object) -> None:
    """Tables of one's own session, named as the farm's, hold whatever one likes."""
    real = "main" if desk.engine.dialect.name == "sqlite" else "public"
    with desk.engine.connect() as connection:
        for table, rows in shadows.items():
            connection.execute(text(SHADOWS.format(table=table, real=real, rows=rows)))
        for statement in statements:
            connection.execute(text(statement.format(real=real)), values)
        connection.rollback()


def test_a_temporary_table_does_not_stand_in_for_the_farms_own(desk: Desk, lease: Lease) -> None:
    assert desk.publish(lease)
    desk.submit(count=1)
    (other,) = desk.claim()
    lies = [
        "UPDATE artifact SET job_id = :id, frame_sha256 = :frame",
        "UPDATE verdict SET job_id = :id, subject = :frame, outcome = 'allow', stage = 'frame'",
        "UPDATE {real}.job SET state = 'published', artifact_id = (SELECT max(id) FROM artifact) WHERE id = :id",
    ]
    with pytest.raises(IntegrityError, match="law 1"):
        shadowed(desk, lies, {"artifact": "", "verdict": "LIMIT 1"}, id=other.job_id, frame=frame_of(other))


@pytest.mark.parametrize(
    ("table", "statement"),
    [
        ("job", "DELETE FROM {real}.artifact"),
        ("audit", "UPDATE {real}.audit SET seq = 1 WHERE id = (SELECT max(id) FROM {real}.audit)"),
    ],
)
def test_an_empty_temporary_table_hides_nothing_from_a_trigger(
    desk: Desk, lease: Lease, table: str, statement: str
) -> None:
    desk.publish(lease)
    audit.seal(desk.engine)
    desk.queue.cancel_batch(lease.batch_id, "ann")
    with pytest.raises(IntegrityError, match=r"that a job or a decision refers to|sealed once"):
        shadowed(desk, [statement], {table: "WHERE 1 = 0"})


def held(desk: Desk, lease: Lease) -> int:
    desk.end(lease, State.HELD)
    return int(desk.job(lease.job_id)["artifact_id"])


def test_an_approval_publishes_what_a_person_saw(desk: Desk, lease: Lease) -> None:
    decision = desk.queue.decide(lease.job_id, held(desk, lease), "approve", "ann", "harmless")
    assert desk.queue.publish_approved(lease.job_id, decision, stored(frame_of(lease), key="signed again"))
    assert desk.state(lease.job_id) == "published"
    assert [one["key"] for one in desk.insights.gallery("ours")] == ["signed again"]


@pytest.mark.parametrize("lie", ["other pixels", "no decision", "a rejection", "withdrawn", "another job's"])
def test_an_approval_that_is_not_one_does_not_publish(desk: Desk, lease: Lease, lie: str) -> None:
    artifact = held(desk, lease)
    verdict_id = desk.job(lease.job_id)["verdict_id"]
    outcome = "reject" if lie == "a rejection" else "approve"
    decision: int | None = desk.queue.decide(lease.job_id, artifact, outcome, "ann", "")
    frame = frame_of(lease)
    if lie == "other pixels":
        frame = "2" * 64
        verdict_id += 1
        columns = "project_id, job_id, attempt, outcome, policy, encoder, reason, gang, weights, created_at, stage"
        desk.sql(f"INSERT INTO verdict ({columns}, subject) SELECT {columns}, :frame FROM verdict", frame=frame)
    elif lie == "no decision":
        decision = None
    elif lie == "withdrawn":
        desk.queue.decide(lease.job_id, artifact, "withdraw", "ann", "")
    elif lie == "another job's":
        desk.submit(NewJob(line=1, spec=SPEC))
        (other,) = desk.claim()[-1:]
        decision = desk.queue.decide(other.job_id, held(desk, other), "approve", "ann", "")
    with pytest.raises(IntegrityError, match="law 1"):
        forge(desk, lease, verdict_id=verdict_id, decision_id=decision, frame=frame)


@pytest.mark.parametrize("table", ["verdict", "decision"])
def test_verdicts_and_decisions_are_never_changed_or_deleted(desk: Desk, lease: Lease, table: str) -> None:
    desk.queue.decide(lease.job_id, held(desk, lease), "approve", "ann", "")
    for statement in (f"UPDATE {table} SET reason = 'other'", f"DELETE FROM {table}"):
        with pytest.raises(IntegrityError, match="never changed or deleted"):
            desk.sql(statement)
    if desk.engine.dialect.name == "postgresql":
        with pytest.raises(IntegrityError, match="never changed or deleted"):
            desk.sql(f"TRUNCATE {table}")


def test_policies_and_what_was_said_in_shadow_are_never_changed_or_deleted(desk: Desk) -> None:
    desk.sql("INSERT INTO policy (hash, name, document, person, created_at) VALUES ('h', 'n', '{}', 'ann', 0)")
    desk.sql(
        "INSERT INTO shadow_verdict (project_id, job_id, attempt, stage, subject, policy, outcome, against,"
        " active_outcome, created_at) VALUES ('ours', 1, 1, 'frame', 's', 'h', 'block', 'i', 'allow', 0)"
    )
    statements = ["UPDATE policy SET document = '{ }'", "DELETE FROM policy"]
    statements += ["UPDATE shadow_verdict SET outcome = 'allow'", "DELETE FROM shadow_verdict"]
    if desk.engine.dialect.name == "postgresql":
        statements += ["TRUNCATE policy CASCADE", "TRUNCATE shadow_verdict"]
    else:
        statements += [
            f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}" for table in ("policy", "shadow_verdict")
        ]
    for statement in statements:
        with pytest.raises(IntegrityError, match="never changed or deleted"):
            desk.sql(statement)


def test_a_verdict_of_another_policy_stands_beside_the_first_and_a_twin_does_not(desk: Desk, lease: Lease) -> None:
    first = desk.judge(lease)
    columns = "project_id, job_id, attempt, stage, subject, outcome, encoder, reason, gang, weights, created_at"
    another = f"INSERT INTO verdict ({columns}, policy, lists) SELECT {columns}, :policy, :lists FROM verdict"
    assert desk.sql(f"{another} WHERE id = :id", policy="another", lists="", id=first) == 1
    assert desk.sql(f"{another} WHERE id = :id", policy="another", lists="of today", id=first) == 1
    for policy, lists in (("another", ""), ("another", "of today"), (sha("policy"), "")):
        with pytest.raises(IntegrityError):
            desk.sql(f"{another} WHERE id = :id", policy=policy, lists=lists, id=first)


@pytest.mark.parametrize("sealed", [False, True])
def test_audit_rows_are_sealed_once_and_never_changed(desk: Desk, lease: Lease, sealed: bool) -> None:
    if sealed:
        assert audit.seal(desk.engine) > 0
    for statement in ("UPDATE audit SET actor = 'nobody'", "DELETE FROM audit"):
        with pytest.raises(IntegrityError, match="audit"):
            desk.sql(statement)
    if sealed:
        with pytest.raises(IntegrityError, match="audit"):
            desk.sql("UPDATE audit SET seq = 99")
    with pytest.raises(IntegrityError, match="sealed later"):
        desk.sql(
            "INSERT INTO audit (seq, project_id, actor, action, subject, data, created_at)"
            " VALUES (77, 'ours', 'x', 'x', 'x', '{}', 0)"
        )


def test_signed_heads_are_never_changed_or_deleted(desk: Desk, lease: Lease) -> None:
    audit.seal(desk.engine)
    assert audit.sign_head(desk.engine, StampSigner(), desk.clock) == 1
    statements = ["UPDATE audit_head SET sha256 = 'other'", "DELETE FROM audit_head"]
    for statement in statements + ["TRUNCATE audit_head"] * (desk.engine.dialect.name == "postgresql"):
        with pytest.raises(IntegrityError, match="never changed or deleted"):
            desk.sql(statement)


@pytest.mark.parametrize("table", ["verdict", "artifact", "decision", "audit", "audit_head"])
def test_sqlite_cannot_replace_a_row_by_inserting_over_it(desk: Desk, lease: Lease, table: str) -> None:
    if desk.engine.dialect.name != "sqlite":
        pytest.skip("INSERT OR REPLACE is SQLite's own")
    desk.queue.decide(lease.job_id, held(desk, lease), "approve", "ann", "")
    audit.seal(desk.engine)
    audit.sign_head(desk.engine, StampSigner(), desk.clock)
    before = desk.rows(f"SELECT * FROM {table} ORDER BY 1")
    with pytest.raises(IntegrityError):
        desk.sql(f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}")
    if table == "verdict":
        same = "project_id, job_id, attempt, stage, subject, policy, lists, encoder, reason, gang, weights, created_at"
        with pytest.raises(IntegrityError):
            desk.sql(f"INSERT OR REPLACE INTO verdict (id, outcome, {same}) SELECT 50, 'allow', {same} FROM verdict")
    assert desk.rows(f"SELECT * FROM {table} ORDER BY 1") == before


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE job SET state = 'done'",
        "UPDATE batch SET state = 'done'",
        "UPDATE api_key SET role = 'god'",
    ],
)
def test_words_that_mean_nothing_are_refused(desk: Desk, lease: Lease, statement: str) -> None:
    Access(desk.engine).create_key("ours", "laptop", "operator")
    with pytest.raises(IntegrityError):
        desk.sql(statement)


def test_the_publisher_survives_its_own_triggers_in_a_group(desk: Desk) -> None:
    batch = desk.submit(count=20)
    leases = desk.claim(limit=20)
    ids = desk.queue.record([(lease, verdict(frame_of(lease))) for lease in leases])
    results = [finished(lease, id_ or 0) for lease, id_ in zip(leases, ids, strict=True)]
    assert desk.queue.publish(results) == [True] * 20
    assert desk.states(batch) == {"published": 20}


@pytest.mark.parametrize("stage", [Stage.INPUT, Stage.FRAME])
@pytest.mark.parametrize("state", [State.HELD, State.APPROVED])
def test_what_is_on_an_illegal_list_is_shown_to_nobody_whatever_a_person_says(
    desk: Desk, lease: Lease, stage: Stage, state: State
) -> None:
    allowed = desk.judge(lease)
    desk.queue.record([(lease, replace(verdict("e" * 64, Outcome.BLOCK, stage), illegal=True))])
    assert desk.state(lease.job_id) == "blocked"
    with pytest.raises(IntegrityError, match="illegal"):
        forge(desk, lease, state, verdict_id=allowed)
    assert desk.state(lease.job_id) == "blocked"


def test_what_is_blocked_for_another_reason_may_be_held_for_an_appeal(desk: Desk, lease: Lease) -> None:
    forge(desk, lease, "held", verdict_id=desk.judge(lease, Outcome.BLOCK))
    assert desk.state(lease.job_id) == "held"


def test_what_is_on_an_illegal_list_is_not_kept(desk: Desk, lease: Lease) -> None:
    keep = """INSERT INTO quarantine (project_id, job_id, verdict_id, key, expires_at, created_at)
        VALUES ('ours', :job_id, :verdict_id, 'k', 1, 0)"""
    desk.submit(count=1)
    (others,), theirs = desk.claim(), replace(verdict("e" * 64, Outcome.BLOCK), illegal=True)
    ours = desk.judge(lease, Outcome.BLOCK)
    assert desk.sql(keep, job_id=lease.job_id, verdict_id=ours) == 1
    (illegal,) = desk.queue.record([(others, theirs)])
    with pytest.raises(IntegrityError, match="illegal"):
        desk.sql(keep, job_id=others.job_id, verdict_id=illegal)


def test_an_illegal_preview_is_not_shown_and_does_not_end_the_job(desk: Desk, lease: Lease) -> None:
    desk.queue.record([(lease, replace(verdict("e" * 64, Outcome.BLOCK, Stage.PREVIEW), illegal=True))])
    assert desk.publish(lease)
