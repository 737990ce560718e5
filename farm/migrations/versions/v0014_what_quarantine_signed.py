"""The hash of the signed file that lies sealed in quarantine: who verifies it when it is opened learns what it is."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = depends_on = None


def upgrade() -> None:
    op.add_column("quarantine", sa.Column("signed_sha256", sa.String(), nullable=False, server_default=""))
