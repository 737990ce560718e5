"""The first tables."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = branch_labels = depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def columns(kind: Any, *names: str, nullable: bool = False) -> list[sa.Column[Any]]:
    return [sa.Column(name, kind, nullable=nullable) for name in names]


def index(name: str, table: str, *names: str, unique: bool = False, where: str = "", sqlite: str = "") -> None:
    partial: dict[str, Any] = {}
    if where:
        partial = {"postgresql_where": sa.text(where), "sqlite_where": sa.text(sqlite or where)}
    op.create_index(name, table, list(names), unique=unique, **partial)


def upgrade() -> None:
    op.create_table(
        "artifact",
        sa.Column("id", BIG, primary_key=True, autoincrement=True),
        *columns(sa.String(), "project_id"),
        *columns(BIG, "job_id", "verdict_id"),
        *columns(BIG, "decision_id", nullable=True),
        *columns(sa.String(), "key", "frame_sha256", "manifest_sha256", "label", "mime"),
        *columns(sa.Integer(), "width", "height", "bytes"),
        *columns(sa.Float(), "verified_at", nullable=True),
        *columns(sa.Float(), "created_at"),
        sqlite_autoincrement=True,
    )
    index("artifact_project", "artifact", "project_id", "id")
    index("ix_artifact_job_id", "artifact", "job_id")
    index("ix_artifact_key", "artifact", "key")
    op.create_table(
        "audit",
        sa.Column("id", BIG, primary_key=True, autoincrement=True),
        *columns(BIG, "seq", nullable=True),
        *columns(sa.String(), "project_id", "actor", "action", "subject"),
        *columns(sa.JSON(), "data"),
        *columns(sa.Float(), "created_at"),
        *columns(sa.String(), "previous", "sha256", nullable=True),
        sa.UniqueConstraint("seq"),
    )
    index("audit_unsealed", "audit", "id", where="seq IS NULL")
    op.create_table(
        "audit_head",
        sa.Column("seq", BIG, primary_key=True, autoincrement=False),
        *columns(sa.String(), "sha256", "signature"),
        *columns(sa.Float(), "created_at"),
    )
    op.create_table(
        "bad_line",
        sa.Column("id", BIG, primary_key=True, autoincrement=True),
        *columns(BIG, "batch_id"),
        *columns(sa.String(), "project_id"),
        *columns(sa.Integer(), "line"),
        *columns(sa.String(), "field", "reason"),
    )
    index("ix_bad_line_batch_id", "bad_line", "batch_id")
    op.create_table(
        "component",
        sa.Column("name", sa.String(), primary_key=True),
        *columns(sa.String(), "kind", "state", "detail"),
        *columns(sa.Float(), "beat_at"),
    )
    op.create_table(
        "decision",
        sa.Column("id", BIG, primary_key=True, autoincrement=True),
        *columns(sa.String(), "project_id"),
        *columns(BIG, "job_id", "artifact_id"),
        *columns(sa.String(), "outcome", "person", "reason"),
        *columns(sa.Float(), "created_at"),
        sa.CheckConstraint("outcome IN ('approve', 'reject', 'withdraw')", name="decision_outcome"),
    )
    index("ix_decision_job_id", "decision", "job_id")
    op.create_table(
        "event",
        sa.Column("id", BIG, primary_key=True, autoincrement=True),
        *columns(BIG, "seq", nullable=True),
        *columns(sa.String(), "project_id"),
        *columns(BIG, "batch_id", "job_id", nullable=True),
        *columns(sa.String(), "kind"),
        *columns(sa.JSON(), "data"),
        *columns(sa.Float(), "created_at"),
        sa.UniqueConstraint("seq"),
    )
    index("event_project", "event", "project_id", "seq")
    index("event_superseded", "event", "project_id", where="kind = 'superseded'")
    index("event_unsealed", "event", "id", where="seq IS NULL")
    op.create_table(
        "job",
        sa.Column("id", BIG, primary_key=True, autoincrement=True),
        *columns(sa.String(), "project_id"),
        *columns(BIG, "batch_id", "lane_id"),
        *columns(sa.Integer(), "line", "index"),
        *columns(sa.String(), "name", nullable=True),
        *columns(sa.String(), "state", "model", "prompt"),
        *columns(sa.BigInteger(), "seed"),
        *columns(sa.Integer(), "width", "height", "steps"),
        *columns(sa.Float(), "guidance"),
        *columns(sa.String(), "format"),
        *columns(sa.Boolean(), "edit"),
        *columns(sa.Integer(), "priority"),
        *columns(BIG, "parent_job_id", nullable=True),
        *columns(sa.String(), "parent_name", "upload_id", nullable=True),
        *columns(sa.Integer(), "attempt", "forgiven"),
        *columns(sa.String(), "owner", nullable=True),
        *columns(sa.Float(), "lease_expires_at", nullable=True),
        *columns(sa.Float(), "not_before"),
        *columns(sa.String(), "reason"),
        *columns(BIG, "verdict_id", "artifact_id", nullable=True),
        *columns(sa.Float(), "created_at", "updated_at"),
        sa.CheckConstraint(
            "state IN ('waiting', 'queued', 'leased', 'published', 'held', 'approved', 'rejected', 'blocked', 'failed',"
            " 'cancelled', 'unlisted')",
            name="job_state",
        ),
        sqlite_autoincrement=True,
    )
    index("job_batch_state", "job", "batch_id", "state", "id")
    index("job_child", "job", "parent_job_id", where="parent_job_id IS NOT NULL")
    index("job_claim", "job", "lane_id", "not_before", "id", where="state = 'queued'")
    index("job_lease", "job", "lease_expires_at", where="state = 'leased'")
    index("job_name", "job", "batch_id", "name", "index", where="name IS NOT NULL", unique=True)
    index("job_project_state", "job", "project_id", "state", "id")
    op.create_table(
        "job_fault",
        sa.Column("id", BIG, primary_key=True, autoincrement=True),
        *columns(sa.String(), "project_id"),
        *columns(BIG, "job_id"),
        *columns(sa.Integer(), "attempt"),
        *columns(sa.String(), "cause", "payer"),
        *columns(sa.String(), "gang", nullable=True),
        *columns(sa.String(), "detail"),
        *columns(sa.Float(), "created_at"),
    )
    index("ix_job_fault_job_id", "job_fault", "job_id")
    op.create_table(
        "lane",
        sa.Column("id", BIG, primary_key=True, autoincrement=True),
        *columns(sa.String(), "project_id"),
        *columns(BIG, "batch_id"),
        *columns(sa.String(), "model", "shape_key"),
        *columns(sa.Integer(), "priority"),
        *columns(sa.Boolean(), "open"),
        *columns(sa.Float(), "created_at"),
        sa.UniqueConstraint("batch_id", "shape_key", "priority", name="lane_key"),
    )
    index("lane_open", "lane", "batch_id", where="open", sqlite="open = 1")
    op.create_table(
        "project",
        sa.Column("id", sa.String(), primary_key=True),
        *columns(sa.Float(), "created_at"),
    )
    op.create_table(
        "verdict",
        sa.Column("id", BIG, primary_key=True, autoincrement=True),
        *columns(sa.String(), "project_id"),
        *columns(BIG, "job_id"),
        *columns(sa.Integer(), "attempt"),
        *columns(sa.String(), "stage", "subject", "outcome", "policy", "encoder"),
        *columns(sa.String(), "concept", nullable=True),
        *columns(sa.Float(), "margin", "probability", nullable=True),
        *columns(sa.String(), "view", nullable=True),
        *columns(sa.String(), "reason"),
        *columns(sa.LargeBinary(), "embedding", nullable=True),
        *columns(sa.String(), "gang", "weights"),
        *columns(sa.Float(), "created_at"),
        sa.CheckConstraint("outcome IN ('allow', 'review', 'block')", name="verdict_outcome"),
        sa.CheckConstraint("stage IN ('prompt', 'input', 'frame')", name="verdict_stage"),
        sa.UniqueConstraint("job_id", "attempt", "stage", "subject", name="verdict_key"),
    )
    op.create_table(
        "api_key",
        sa.Column("id", sa.String(), primary_key=True),
        *columns(sa.String(), "project_id", "name", "role", "sha256"),
        *columns(sa.Float(), "created_at"),
        *columns(sa.Float(), "revoked_at", nullable=True),
        sa.CheckConstraint("role IN ('submitter', 'reviewer', 'operator')", name="api_key_role"),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"]),
        sa.UniqueConstraint("sha256"),
    )
    index("ix_api_key_project_id", "api_key", "project_id")
    op.create_table(
        "batch",
        sa.Column("id", BIG, primary_key=True, autoincrement=True),
        *columns(sa.String(), "project_id", "name", "state"),
        *columns(sa.Integer(), "priority"),
        *columns(sa.String(), "content_sha256", nullable=True),
        *columns(sa.Integer(), "lines", "jobs", "bad_lines"),
        *columns(sa.String(), "submitted_by", "reason"),
        *columns(sa.Float(), "created_at", "updated_at"),
        sa.CheckConstraint("state IN ('staging', 'open', 'paused', 'cancelled', 'discarded')", name="batch_state"),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"]),
        sqlite_autoincrement=True,
    )
    index("batch_content", "batch", "project_id", "content_sha256", where="content_sha256 IS NOT NULL", unique=True)
    index("batch_project", "batch", "project_id", "id")
    index("batch_unfinished", "batch", "updated_at", where="state IN ('staging', 'discarded')")
    op.create_table(
        "upload",
        sa.Column("id", sa.String(), primary_key=True),
        *columns(sa.String(), "project_id", "name", "key", "mime"),
        *columns(sa.Integer(), "width", "height", "bytes"),
        *columns(sa.Float(), "created_at"),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"]),
    )
    index("ix_upload_project_id", "upload", "project_id")


def downgrade() -> None:
    raise NotImplementedError("the first tables are removed with their database")
