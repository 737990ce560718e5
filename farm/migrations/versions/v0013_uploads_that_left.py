"""An upload whose file had to leave the store keeps its row: what was drawn from it is judged on."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = depends_on = None


def upgrade() -> None:
    op.add_column("upload", sa.Column("purged_at", sa.Float()))
