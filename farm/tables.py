"""The tables. Every row that belongs to someone names its project. Times are seconds since 1970, UTC.

A **lane** is what the scheduler chooses from: the jobs of one batch that share a shape key and a priority. It lets a claim go
straight to an index range however many jobs wait, and makes pausing or hiding a batch one small change.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Column, Index, Integer, LargeBinary, UniqueConstraint, text
from sqlmodel import Field, SQLModel

# SQLite only counts up by itself on INTEGER; PostgreSQL wants 64 bits.
BIG = BigInteger().with_variant(Integer, "sqlite")


def big_key() -> Any:
    return Field(default=None, sa_column=Column(BIG, primary_key=True, autoincrement=True))


class Project(SQLModel, table=True):
    id: str = Field(primary_key=True)
    created_at: float


class ApiKey(SQLModel, table=True):
    id: str = Field(primary_key=True)
    project_id: str = Field(foreign_key="project.id", index=True)
    name: str
    role: str  # submitter, reviewer, operator
    sha256: str = Field(unique=True)
    created_at: float
    revoked_at: float | None = None


class Upload(SQLModel, table=True):
    id: str = Field(primary_key=True)
    project_id: str = Field(foreign_key="project.id", index=True)
    name: str
    key: str  # in the store, as received
    mime: str
    width: int
    height: int
    bytes: int
    created_at: float


class Batch(SQLModel, table=True):
    # One batch per content and project, unless asked for again (then the hash is empty).
    __table_args__ = (
        Index(
            "batch_content",
            "project_id",
            "content_sha256",
            unique=True,
            sqlite_where=text("content_sha256 IS NOT NULL"),
            postgresql_where=text("content_sha256 IS NOT NULL"),
        ),
    )
    id: int | None = big_key()
    project_id: str = Field(foreign_key="project.id", index=True)
    name: str
    state: str  # staging (invisible), open, paused, cancelled
    content_sha256: str | None = None
    lines: int = 0
    jobs: int = 0
    bad_lines: int = 0
    submitted_by: str = ""
    reason: str = ""  # why it is paused or cancelled
    created_at: float


class BadLine(SQLModel, table=True):
    __tablename__ = "bad_line"
    id: int | None = big_key()
    batch_id: int = Field(sa_column=Column(BIG, index=True, nullable=False))
    project_id: str
    line: int
    field: str
    reason: str


class Lane(SQLModel, table=True):
    __table_args__ = (UniqueConstraint("batch_id", "shape_key", "priority"),)
    id: int | None = big_key()
    project_id: str
    batch_id: int = Field(sa_column=Column(BIG, nullable=False))
    model: str
    shape_key: str
    priority: int
    open: bool = Field(index=True)  # may hold queued jobs; an empty lane is closed by the claim that finds it so
    created_at: float


class Job(SQLModel, table=True):
    __table_args__ = (
        Index("job_claim", "lane_id", "state", "not_before", "id"),
        Index("job_batch_state", "batch_id", "state"),
        Index("job_batch_name", "batch_id", "name"),
        Index(
            "job_lease",
            "state",
            "lease_expires_at",
            sqlite_where=text("state = 'leased'"),
            postgresql_where=text("state = 'leased'"),
        ),
        Index("job_parent", "parent_job_id"),
        Index("job_project", "project_id", "state", "id"),
    )
    id: int | None = big_key()
    project_id: str
    batch_id: int = Field(sa_column=Column(BIG, nullable=False))
    lane_id: int = Field(sa_column=Column(BIG, nullable=False))
    line: int
    index: int = 0  # which of the line's n
    name: str | None = None  # the line's own id
    state: str
    model: str
    prompt: str
    seed: int = Field(sa_column=Column(BigInteger, nullable=False))
    width: int
    height: int
    steps: int
    guidance: float
    format: str
    edit: bool = False
    priority: int = 0
    parent_job_id: int | None = Field(default=None, sa_column=Column(BIG))
    upload_id: str | None = None
    attempt: int = 0
    owner: str | None = None
    lease_expires_at: float | None = None
    not_before: float = 0.0
    reason: str = ""  # why it waits, failed, was blocked or cancelled
    verdict_id: int | None = Field(default=None, sa_column=Column(BIG))
    artifact_id: int | None = Field(default=None, sa_column=Column(BIG))
    created_at: float
    updated_at: float


class Verdict(SQLModel, table=True):
    __table_args__ = (UniqueConstraint("job_id", "attempt", "stage", "subject"),)
    id: int | None = big_key()
    project_id: str
    job_id: int = Field(sa_column=Column(BIG, index=True, nullable=False))
    attempt: int
    stage: str
    subject: str
    outcome: str
    policy: str
    encoder: str
    concept: str | None = None
    margin: float | None = None
    probability: float | None = None
    view: str | None = None
    reason: str = ""
    embedding: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    gang: str = ""  # who drew the frame, for the manifest
    weights: str = ""
    created_at: float


class Artifact(SQLModel, table=True):
    id: int | None = big_key()
    project_id: str = Field(index=True)
    job_id: int = Field(sa_column=Column(BIG, index=True, nullable=False))
    verdict_id: int = Field(sa_column=Column(BIG, nullable=False))
    decision_id: int | None = Field(default=None, sa_column=Column(BIG))  # the approval its signature records
    key: str = Field(index=True)
    frame_sha256: str
    manifest_sha256: str
    label: str
    mime: str
    width: int
    height: int
    bytes: int
    verified_at: float | None = None  # set once it was read back and found Trusted
    created_at: float


class Decision(SQLModel, table=True):
    id: int | None = big_key()
    project_id: str
    job_id: int = Field(sa_column=Column(BIG, index=True, nullable=False))
    artifact_id: int = Field(sa_column=Column(BIG, nullable=False))
    outcome: str  # approve, reject
    person: str
    reason: str
    created_at: float


class JobFault(SQLModel, table=True):
    __tablename__ = "job_fault"
    id: int | None = big_key()
    project_id: str
    job_id: int = Field(sa_column=Column(BIG, index=True, nullable=False))
    attempt: int
    cause: str
    payer: str
    gang: str | None = None
    detail: str
    created_at: float


class Event(SQLModel, table=True):
    # `seq` is given by the sealer after commit, so that a reader who resumes misses nothing.
    id: int | None = big_key()
    seq: int | None = Field(default=None, sa_column=Column(BIG, unique=True))
    project_id: str = Field(index=True)
    batch_id: int | None = Field(default=None, sa_column=Column(BIG))
    job_id: int | None = Field(default=None, sa_column=Column(BIG))
    kind: str
    data: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    created_at: float


class Audit(SQLModel, table=True):
    id: int | None = big_key()
    seq: int | None = Field(default=None, sa_column=Column(BIG, unique=True))
    project_id: str
    actor: str
    action: str
    subject: str
    data: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    created_at: float
    previous: str | None = None
    sha256: str | None = None


class AuditHead(SQLModel, table=True):
    __tablename__ = "audit_head"
    seq: int = Field(sa_column=Column(BIG, primary_key=True, autoincrement=False))
    sha256: str
    signature: str
    created_at: float


class Component(SQLModel, table=True):
    """What each process last said of itself, so that every wait says what it waits for."""

    name: str = Field(primary_key=True)
    kind: str  # dispatcher, signer, gate, gang, api
    state: str  # ready, waiting
    detail: str = ""
    beat_at: float
