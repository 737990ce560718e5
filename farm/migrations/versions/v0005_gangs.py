"""What each dispatcher says of its gangs."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = depends_on = None


def upgrade() -> None:
    op.create_table(
        "gang",
        sa.Column("dispatcher", sa.String(), primary_key=True),
        sa.Column("pool", sa.String(), primary_key=True),
        sa.Column("place", sa.Integer(), primary_key=True, autoincrement=False),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("model", "gang", "state", "waits_for")),
        *(sa.Column(name, sa.Float(), nullable=False) for name in ("since", "beat_at")),
    )
