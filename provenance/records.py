"""What the database says of a frame, an approval or an audit head that someone asks to have signed. Reads only.

Whatever is not on record is refused: the asker's word counts for nothing but which record to look at.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlmodel import Session, SQLModel, col, select

from farm.audit import Head
from farm.db import reading
from farm.errors import Forbidden, NotFound
from farm.job import FORMATS, State
from farm.ports import Frame, Outcome, Stage
from farm.progress import doubted
from farm.quarantine import days_of
from farm.tables import Artifact, Audit, Decision, Job, Policy, Upload, Verdict

Row = TypeVar("Row", bound=SQLModel)
HELD_TOO = (State.PUBLISHED, State.HELD)
SIGNABLE = (Outcome.ALLOW, Outcome.REVIEW)


class Refused(Forbidden):
    title = "The signer refuses"


@dataclass(frozen=True, slots=True)
class ParentFile:
    """The picture a job edits: where its bytes lie, and whether the farm made it."""

    key: str
    mime: str
    title: str
    ours: bool


@dataclass(frozen=True, slots=True)
class Claim:
    job: Job
    verdict: Verdict
    parent: ParentFile | None


@dataclass(frozen=True, slots=True)
class Approval:
    job: Job
    verdict: Verdict
    decision: Decision
    held: ParentFile


def frame_claim(engine: Engine, job_id: int, attempt: int, owner: str, frame: Frame) -> Claim:
    """The claim for this frame, if the asker holds the lease and the gate let these very pixels pass."""
    with reading(engine) as connection:
        job = _leased(connection, job_id, attempt, owner)
        if (frame.width, frame.height) != (job.width, job.height):
            raise Refused(f"job {job_id} asks for {job.width}x{job.height}, not {frame.width}x{frame.height}")
        verdict = _verdict(connection, job, attempt, frame.sha256)
        return Claim(job, verdict, _edited(connection, job))


def preview_claim(engine: Engine, job_id: int, attempt: int, owner: str, frame: Frame) -> Claim:
    """That for a preview. No person has seen it, so whatever the gate did not plainly allow is refused."""
    with reading(engine) as connection:
        job = _leased(connection, job_id, attempt, owner)
        if frame.width * 2 > job.width or frame.height * 2 > job.height:
            raise Refused(f"{frame.width}x{frame.height} is no preview of job {job_id}: it is larger than half of it")
        said = _said(connection, job, attempt)
        judged = next((one for one in said if (one.stage, one.subject) == (Stage.PREVIEW, frame.sha256)), None)
        if judged is None:
            raise Refused(f"these pixels have no verdict as a preview in attempt {attempt} of job {job_id}")
        if judged.outcome != Outcome.ALLOW or connection.execute(select(doubted(job_id))).scalar_one():
            raise Refused(f"the gate did not allow this preview of job {job_id}, or doubts the job")
        return Claim(job, judged, _edited(connection, job))


def blocked_claim(engine: Engine, job_id: int, attempt: int, frame: Frame) -> Claim:
    """That for a frame for which its job was blocked, where the policy that did so keeps it."""
    with reading(engine) as connection:
        job = _get(connection, Job, job_id)
        if job is None or (job.state, job.attempt) != (State.BLOCKED, attempt) or job.verdict_id is None:
            raise Refused(f"job {job_id} was not blocked in attempt {attempt}")
        verdict = _get(connection, Verdict, job.verdict_id)
        if verdict is None or (verdict.stage, verdict.subject) != (Stage.FRAME, frame.sha256):
            raise Refused(f"job {job_id} was not blocked for these pixels")
        policy = _get(connection, Policy, verdict.policy)
        if verdict.illegal or policy is None or not days_of(policy.document, verdict.concept):
            raise Refused(f"the policy does not keep what it blocked of job {job_id}")
        return Claim(job, verdict, _edited(connection, job, HELD_TOO))  # what it edited may be held for it


def approval(engine: Engine, job_id: int, decision_id: int) -> Approval:
    """The approval of a held artifact: it must be the last word on this job, and about what the job holds now."""
    with reading(engine) as connection:
        job = _get(connection, Job, job_id)
        if job is None or job.state != State.APPROVED or job.artifact_id is None:
            raise Refused(f"job {job_id} is not approved")
        decision = _last_decision(connection, job_id)
        if decision is None or (decision.id, decision.outcome) != (decision_id, "approve"):
            raise Refused(f"decision {decision_id} is not the last one on job {job_id}, or approves nothing")
        artifact = _get(connection, Artifact, job.artifact_id)
        if artifact is None or artifact.id != decision.artifact_id:
            raise Refused(f"decision {decision_id} is about another artifact than job {job_id} holds")
        verdict = _get(connection, Verdict, job.verdict_id or artifact.verdict_id)  # a rescan may have held it later
        if verdict is None:
            raise Refused(f"the artifact of job {job_id} has no verdict")
        return Approval(job, verdict, decision, _ours(artifact))


def job_of(engine: Engine, job_id: int, project_id: str) -> Job:
    with reading(engine) as connection:
        job = _get(connection, Job, job_id)
        if job is None or job.project_id != project_id:
            raise NotFound(f"there is no job {job_id} in this project")
        return job


def require_audit_head(engine: Engine, seq: int, sha256: str, last: Head | None) -> None:
    if last is not None and seq < last.seq:
        raise Refused(f"row {seq} comes before row {last.seq}, whose head was signed already")
    with reading(engine) as connection, Session(connection) as session:

        def holds(seq: int, sha256: str) -> bool:
            return session.exec(select(Audit.id).where(Audit.seq == seq, Audit.sha256 == sha256)).first() is not None

        if last is not None and not holds(last.seq, last.sha256):
            raise Refused(
                f"the audit log no longer holds row {last.seq} as its head was signed: it was cut or rewritten. If this"
                " is another database or a restored backup, remove audit.head from keys/ and trust/ in the farm's home"
            )
        if not holds(seq, sha256):
            raise Refused(f"the audit chain has no row {seq} with this hash")


def _get(connection: Connection, table: type[Row], key: int | str) -> Row | None:
    with Session(connection) as session:
        return session.get(table, key)


def _leased(connection: Connection, job_id: int, attempt: int, owner: str) -> Job:
    job = _get(connection, Job, job_id)
    if job is None or (job.state, job.attempt, job.owner) != (State.LEASED, attempt, owner):
        raise Refused(f"job {job_id} is not leased to this owner in attempt {attempt}")
    return job


def _said(connection: Connection, job: Job, attempt: int) -> Sequence[Verdict]:
    with Session(connection) as session:
        return session.exec(select(Verdict).where(Verdict.job_id == job.id, Verdict.attempt == attempt)).all()


def _verdict(connection: Connection, job: Job, attempt: int, subject: str) -> Verdict:
    """The one on these pixels; and nothing else of the attempt, prompt or input, may have been blocked."""
    verdicts = _said(connection, job, attempt)
    judged = next((one for one in verdicts if (one.stage, one.subject) == (Stage.FRAME, subject)), None)
    if judged is None:
        raise Refused(f"these pixels have no verdict in attempt {attempt} of job {job.id}")
    if any(one.outcome not in SIGNABLE for one in verdicts if one.stage != Stage.PREVIEW):
        raise Refused(f"the gate blocked job {job.id}")
    return judged


def _edited(connection: Connection, job: Job, states: Collection[State] = (State.PUBLISHED,)) -> ParentFile | None:
    parent = _parent(connection, job, states)
    if job.edit and parent is None:
        raise Refused(f"job {job.id} is an edit without a parent")
    return parent


def _parent(connection: Connection, job: Job, states: Collection[State]) -> ParentFile | None:
    if job.upload_id is not None:
        upload = _get(connection, Upload, job.upload_id)
        if upload is None or upload.project_id != job.project_id:
            raise Refused(f"the upload that job {job.id} edits is not there")
        return ParentFile(upload.key, upload.mime, "upload", ours=False)
    if job.parent_job_id is None:
        return None
    parent = _get(connection, Job, job.parent_job_id)
    if parent is not None and parent.state not in states:
        raise Refused(f"job {parent.id}, which job {job.id} edits, is {parent.state}")
    artifact = _get(connection, Artifact, parent.artifact_id) if parent and parent.artifact_id else None
    if artifact is None or artifact.project_id != job.project_id or artifact.verified_at is None:
        raise Refused(f"job {job.parent_job_id}, which job {job.id} edits, has no verified artifact")
    return _ours(artifact)


def _ours(artifact: Artifact) -> ParentFile:
    kind = next(name for name, mime in FORMATS.items() if mime == artifact.mime)
    return ParentFile(artifact.key, artifact.mime, f"{artifact.job_id}.{kind}", ours=True)


def _last_decision(connection: Connection, job_id: int) -> Decision | None:
    with Session(connection) as session:
        newest = select(Decision).where(Decision.job_id == job_id).order_by(col(Decision.id).desc())
        return session.exec(newest).first()
