"""Who accepted which model's licence, and when (law 10)."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "acceptance",
        sa.Column("id", BIG, primary_key=True, autoincrement=True),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("model", "licence", "holds", "person")),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.CheckConstraint("holds IN ('non-commercial', 'commercial')", name="acceptance_holds"),
    )
