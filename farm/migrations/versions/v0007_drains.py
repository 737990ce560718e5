"""What is drained, by whom; the nodes there are; and on which of them each gang lies."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = depends_on = None


def upgrade() -> None:
    op.create_table(
        "drain",
        sa.Column("id", sa.String(), primary_key=True),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("kind", "name", "person", "reason")),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.CheckConstraint("kind IN ('node', 'gang')", name="drain_kind"),
    )
    op.create_table(
        "node",
        sa.Column("dispatcher", sa.String(), primary_key=True),
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("name", sa.String(), nullable=False),
        *(sa.Column(name, sa.Float(), nullable=False) for name in ("cpus", "gpus", "beat_at")),
    )
    op.add_column("gang", sa.Column("nodes", sa.JSON(), nullable=False, server_default="[]"))
