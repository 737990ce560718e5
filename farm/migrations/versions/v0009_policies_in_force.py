"""Policies in force and in shadow, hash lists, quarantine; a verdict of another policy stands beside the first."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
OUTCOMES = "('allow', 'review', 'block')"


def text(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.String(), nullable=False) for name in names]


def upgrade() -> None:
    op.create_table(
        "policy",
        sa.Column("hash", sa.String(), primary_key=True),
        *text("name", "document", "person"),
        sa.Column("created_at", sa.Float(), nullable=False),
    )
    op.create_table(
        "in_force",
        sa.Column("role", sa.String(), primary_key=True),
        sa.Column("policy", sa.String(), sa.ForeignKey("policy.hash"), nullable=False),
        *text("lists", "person"),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.CheckConstraint("role IN ('active', 'shadow')", name="in_force_role"),
    )
    op.create_table(
        "shadow_verdict",
        sa.Column("id", BIG, primary_key=True, autoincrement=True),
        *text("project_id", "stage", "subject", "policy", "outcome", "against", "active_outcome"),
        sa.Column("job_id", BIG, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("concept", sa.String()),
        sa.Column("probability", sa.Float()),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.UniqueConstraint("job_id", "attempt", "stage", "subject", "policy", "against", name="shadow_verdict_key"),
        sa.CheckConstraint("stage IN ('prompt', 'input', 'frame', 'preview')", name="shadow_verdict_stage"),
        sa.CheckConstraint(f"outcome IN {OUTCOMES}", name="shadow_verdict_outcome"),
        sa.CheckConstraint(f"active_outcome IN {OUTCOMES}", name="shadow_verdict_active_outcome"),
    )
    compared = ["policy", "against", "stage", "active_outcome", "outcome"]
    op.create_index("shadow_verdict_policy", "shadow_verdict", compared)
    op.create_table(
        "hash_list",
        sa.Column("name", sa.String(), primary_key=True),
        *text("kind", "sha256", "person"),
        sa.Column("digests", sa.LargeBinary(), nullable=False),
        sa.Column("entries", sa.Integer(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.CheckConstraint("kind IN ('sha256', 'pdq')", name="hash_list_kind"),
    )
    op.create_table(
        "quarantine",
        sa.Column("id", BIG, primary_key=True, autoincrement=True),
        *text("project_id", "key"),
        sa.Column("job_id", BIG, nullable=False),
        sa.Column("verdict_id", BIG, nullable=False, unique=True),
        sa.Column("expires_at", sa.Float(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
    )
    op.create_index("ix_quarantine_job_id", "quarantine", ["job_id"])
    op.create_index("ix_quarantine_expires_at", "quarantine", ["expires_at"])
    with op.batch_alter_table("verdict") as batch:
        batch.add_column(sa.Column("pdq", sa.LargeBinary()))
        batch.add_column(sa.Column("lists", sa.String(), nullable=False, server_default=""))
        batch.drop_constraint("verdict_key", type_="unique")
        batch.create_unique_constraint("verdict_key", ["job_id", "attempt", "stage", "subject", "policy", "lists"])
    op.create_index("verdict_said", "verdict", ["stage", "outcome", "concept"])
