"""The tables. Every row that belongs to someone names its project. Times are seconds since 1970, UTC.

A **lane** is what the scheduler chooses from: the jobs of one batch that share a shape key and a priority. It lets a
claim go straight to an index range however many jobs wait, and makes pausing or hiding a batch one small change.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Index,
    Integer,
    LargeBinary,
    String,
    UniqueConstraint,
    false,
    text,
)
from sqlmodel import Field, SQLModel

from farm.job import State
from farm.ports import Outcome, Stage

# SQLite only counts up by itself on INTEGER; PostgreSQL wants 64 bits.
BIG = BigInteger().with_variant(Integer, "sqlite")
MAX_ID = 2**63 - 1  # a larger number is no id and no place in a list: neither database can even look for it
NEVER_AGAIN = {"sqlite_autoincrement": True}  # an id that was given once is not given again, even if its row is deleted

BATCH_STATES = ("staging", "open", "paused", "cancelled", "discarded")
DECISIONS = ("approve", "reject", "withdraw")
HOLDINGS = ("non-commercial", "commercial")
LIST_KINDS = ("sha256", "pdq")
POLICY_ROLES = ("active", "shadow")
ROLES = ("submitter", "reviewer", "operator")


def big_key() -> Any:
    return Field(default=None, sa_column=Column(BIG, primary_key=True, autoincrement=True))


def one_of(table: str, column: str, words: Iterable[str]) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({', '.join(repr(str(word)) for word in words)})", name=f"{table}_{column}")


def partial(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    """An index of the few rows a hot query looks for. The query must spell the condition out, not bind it."""
    return Index(name, *columns, unique=unique, sqlite_where=text(where), postgresql_where=text(where))


class Project(SQLModel, table=True):
    id: str = Field(primary_key=True)
    created_at: float


class ApiKey(SQLModel, table=True):
    __tablename__ = "api_key"
    __table_args__ = (one_of("api_key", "role", ROLES),)
    id: str = Field(primary_key=True)
    project_id: str = Field(foreign_key="project.id", index=True)
    name: str
    role: str
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
    purged_at: float | None = None  # its file had to leave the store


class Batch(SQLModel, table=True):
    __table_args__ = (
        # One batch per content and project, unless asked for again (then the hash is empty).
        partial("batch_content", "project_id", "content_sha256", where="content_sha256 IS NOT NULL", unique=True),
        partial("batch_unfinished", "updated_at", where="state IN ('staging', 'discarded')"),
        Index("batch_project", "project_id", "id"),
        one_of("batch", "state", BATCH_STATES),
        NEVER_AGAIN,
    )
    id: int | None = big_key()
    project_id: str = Field(foreign_key="project.id")
    name: str
    state: str  # staging (invisible), open, paused, cancelled, discarded (being deleted)
    priority: int = 0  # added to each line's own
    content_sha256: str | None = None
    lines: int = 0
    jobs: int = 0
    bad_lines: int = 0
    submitted_by: str = ""
    reason: str = ""  # why it is paused or cancelled
    # Verdicts up to this one pause it no more: a person resumed it.
    forgiven: int = Field(default=0, sa_column=Column(BIG, nullable=False, server_default="0"))
    created_at: float
    updated_at: float


class BadLine(SQLModel, table=True):
    __tablename__ = "bad_line"
    id: int | None = big_key()
    batch_id: int = Field(sa_column=Column(BIG, index=True, nullable=False))
    project_id: str
    line: int
    field: str
    reason: str


class Lane(SQLModel, table=True):
    __table_args__ = (
        UniqueConstraint("batch_id", "shape_key", "priority", name="lane_key"),
        Index("lane_open", "batch_id", sqlite_where=text("open = 1"), postgresql_where=text("open")),
    )
    id: int | None = big_key()
    project_id: str
    batch_id: int = Field(sa_column=Column(BIG, nullable=False))
    model: str
    shape_key: str
    priority: int
    open: bool  # may hold queued jobs; an empty lane is closed by the claim that finds it so
    created_at: float


class Job(SQLModel, table=True):
    __table_args__ = (
        partial("job_claim", "lane_id", "not_before", "id", where="state = 'queued'"),
        partial("job_lease", "lease_expires_at", where="state = 'leased'"),
        partial("job_child", "parent_job_id", "id", where="parent_job_id IS NOT NULL"),
        partial("job_name", "batch_id", "name", "index", where="name IS NOT NULL", unique=True),
        partial("job_waits", "batch_id", "state", "reason", where="state IN ('waiting', 'queued') AND reason <> ''"),
        Index("job_batch", "batch_id", "id"),
        Index("job_batch_state", "batch_id", "state", "id"),
        Index("job_project", "project_id", "id"),
        Index("job_project_state", "project_id", "state", "id"),
        one_of("job", "state", State),
        NEVER_AGAIN,
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
    parent_name: str | None = None  # the `id` of the earlier line it edits
    upload_id: str | None = None
    attempt: int = 0
    forgiven: int = 0  # faults of attempts up to this one no longer count: a person asked for a retry
    owner: str | None = None
    lease_expires_at: float | None = None
    not_before: float = 0.0
    reason: str = ""  # why it waits, failed, was blocked or cancelled
    verdict_id: int | None = Field(default=None, sa_column=Column(BIG))
    artifact_id: int | None = Field(default=None, sa_column=Column(BIG))
    created_at: float
    updated_at: float


class Unfollowed(SQLModel, table=True):
    """A job whose children have not all followed its last change: too many for the transaction that made it."""

    job_id: int = Field(sa_column=Column(BIG, primary_key=True, autoincrement=False))
    project_id: str
    after: int = Field(sa_column=Column(BIG, nullable=False))  # the child up to which they have


class Doubted(SQLModel, table=True):
    """A job that a person sees first, whatever the gate says of it: one beside it was blocked."""

    job_id: int = Field(sa_column=Column(BIG, primary_key=True, autoincrement=False))
    project_id: str
    reason: str
    created_at: float


class Verdict(SQLModel, table=True):
    __table_args__ = (
        UniqueConstraint("job_id", "attempt", "stage", "subject", "policy", "lists", name="verdict_key"),
        Index("verdict_said", "stage", "outcome", "concept"),
        partial("verdict_illegal", "id", where="illegal"),
        one_of("verdict", "stage", Stage),
        one_of("verdict", "outcome", Outcome),
    )
    id: int | None = big_key()
    project_id: str
    job_id: int = Field(sa_column=Column(BIG, nullable=False))
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
    pdq: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    lists: str = Field(default="", sa_column=Column(String, nullable=False, server_default=""))
    # On a list of what nobody may see. One on the job's prompt, input or frame keeps the job from every person's eyes.
    illegal: bool = Field(default=False, sa_column=Column(Boolean, nullable=False, server_default=false()))
    gang: str = ""  # who drew the frame, for the manifest
    weights: str = ""
    drawn_with: str = Field(default="", sa_column=Column(String, nullable=False, server_default=""))
    created_at: float


class Policy(SQLModel, table=True):
    """A safety document that was in force or in shadow once, whole, so that every verdict can be explained."""

    hash: str = Field(primary_key=True)
    name: str
    document: str
    person: str
    created_at: float


class InForce(SQLModel, table=True):
    """Which policy judges, and with which lists. Publication holds the active one still, or it is another's."""

    __tablename__ = "in_force"
    __table_args__ = (one_of("in_force", "role", POLICY_ROLES),)
    role: str = Field(primary_key=True)
    policy: str = Field(foreign_key="policy.hash")
    lists: str = ""  # what the hash lists that it names hold
    version: int  # one more with every change
    person: str
    created_at: float


class ShadowVerdict(SQLModel, table=True):
    """What the policy in shadow would have said, beside what was said."""

    __tablename__ = "shadow_verdict"
    __table_args__ = (
        UniqueConstraint("job_id", "attempt", "stage", "subject", "policy", "against", name="shadow_verdict_key"),
        Index("shadow_verdict_policy", "policy", "against", "stage", "active_outcome", "outcome"),
        one_of("shadow_verdict", "stage", Stage),
        one_of("shadow_verdict", "outcome", Outcome),
        one_of("shadow_verdict", "active_outcome", Outcome),
    )
    id: int | None = big_key()
    project_id: str
    job_id: int = Field(sa_column=Column(BIG, nullable=False))
    attempt: int
    stage: str
    subject: str
    policy: str
    outcome: str
    against: str  # the policy in force
    active_outcome: str
    concept: str | None = None
    probability: float | None = None
    created_at: float


class HashList(SQLModel, table=True):
    """Hashes of known pictures, imported by an operator."""

    __tablename__ = "hash_list"
    __table_args__ = (one_of("hash_list", "kind", LIST_KINDS),)
    name: str = Field(primary_key=True)
    kind: str
    digests: bytes  # 32 each, sorted, no doubles
    entries: int
    sha256: str  # of the digests
    person: str
    updated_at: float


class Quarantine(SQLModel, table=True):
    """The encrypted pixels of a blocked frame, until their time is over."""

    id: int | None = big_key()
    project_id: str
    job_id: int = Field(sa_column=Column(BIG, index=True, nullable=False))
    verdict_id: int = Field(sa_column=Column(BIG, unique=True, nullable=False))
    key: str  # in the store
    signed_sha256: str = Field(default="", sa_column=Column(String, nullable=False, server_default=""))  # as it opens
    expires_at: float = Field(index=True)
    created_at: float


class Artifact(SQLModel, table=True):
    __table_args__ = (Index("artifact_project", "project_id", "id"), NEVER_AGAIN)
    id: int | None = big_key()
    project_id: str
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
    __table_args__ = (one_of("decision", "outcome", DECISIONS),)
    id: int | None = big_key()
    project_id: str
    job_id: int = Field(sa_column=Column(BIG, index=True, nullable=False))
    artifact_id: int = Field(sa_column=Column(BIG, nullable=False))
    outcome: str
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
    __table_args__ = (
        partial("event_unsealed", "id", where="seq IS NULL"),
        partial("event_superseded", "project_id", where="kind = 'superseded'"),
        Index("event_project", "project_id", "seq"),
    )
    id: int | None = big_key()
    seq: int | None = Field(default=None, sa_column=Column(BIG, unique=True))
    project_id: str
    batch_id: int | None = Field(default=None, sa_column=Column(BIG))
    job_id: int | None = Field(default=None, sa_column=Column(BIG))
    kind: str
    data: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    created_at: float


class Audit(SQLModel, table=True):
    __table_args__ = (partial("audit_unsealed", "id", where="seq IS NULL"),)
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


class Acceptance(SQLModel, table=True):
    """An operator accepted a model's licence (law 10); it counts for the whole farm."""

    __table_args__ = (one_of("acceptance", "holds", HOLDINGS),)
    id: int | None = big_key()
    model: str
    licence: str  # with its version
    holds: str
    person: str
    created_at: float


class Component(SQLModel, table=True):
    """What each process last said of itself, so that every wait says what it waits for."""

    name: str = Field(primary_key=True)
    kind: str  # dispatcher, signer, gate, api
    state: str  # ready, waiting
    detail: str = ""
    beat_at: float


class Gang(SQLModel, table=True):
    """What a dispatcher last said of each place it has for a gang; of one that is silent nothing is known."""

    dispatcher: str = Field(primary_key=True)
    pool: str = Field(primary_key=True)
    place: int = Field(primary_key=True)
    model: str
    gang: str  # "" while there is none
    state: str
    waits_for: str
    since: float
    beat_at: float
    nodes: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False, server_default="[]"))


class Node(SQLModel, table=True):
    """What a dispatcher last said of each node it sees."""

    dispatcher: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    name: str
    cpus: float
    gpus: float
    beat_at: float


class Drain(SQLModel, table=True):
    """A node or a gang that is to be empty, by its id."""

    __table_args__ = (one_of("drain", "kind", ("node", "gang")),)
    id: str = Field(primary_key=True)
    kind: str
    name: str
    person: str
    reason: str
    created_at: float


class Progress(SQLModel, table=True):
    """How far a running job is. To be believed only while the job is leased in that attempt."""

    job_id: int = Field(sa_column=Column(BIG, primary_key=True, autoincrement=False))
    project_id: str
    attempt: int
    step: int
    total: int
    preview: bytes | None = Field(default=None, sa_column=Column(LargeBinary))  # judged, signed and read back
    mime: str | None = None
    updated_at: float


METADATA = SQLModel.metadata
PROJECT = METADATA.tables["project"]
API_KEY = METADATA.tables["api_key"]
UPLOAD = METADATA.tables["upload"]
THERE = UPLOAD.c.purged_at.is_(None)
BATCH = METADATA.tables["batch"]
BAD_LINE = METADATA.tables["bad_line"]
LANE = METADATA.tables["lane"]
JOB = METADATA.tables["job"]
UNFOLLOWED = METADATA.tables["unfollowed"]
DOUBTED = METADATA.tables["doubted"]
VERDICT = METADATA.tables["verdict"]
POLICY = METADATA.tables["policy"]
IN_FORCE = METADATA.tables["in_force"]
SHADOW_VERDICT = METADATA.tables["shadow_verdict"]
HASH_LIST = METADATA.tables["hash_list"]
QUARANTINE = METADATA.tables["quarantine"]
ARTIFACT = METADATA.tables["artifact"]
DECISION = METADATA.tables["decision"]
JOB_FAULT = METADATA.tables["job_fault"]
EVENT = METADATA.tables["event"]
AUDIT = METADATA.tables["audit"]
AUDIT_HEAD = METADATA.tables["audit_head"]
ACCEPTANCE = METADATA.tables["acceptance"]
COMPONENT = METADATA.tables["component"]
GANG = METADATA.tables["gang"]
NODE = METADATA.tables["node"]
DRAIN = METADATA.tables["drain"]
PROGRESS = METADATA.tables["progress"]
