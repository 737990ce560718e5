"""What else drew a frame: device, precision, parallel plan and software, for its manifest."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = depends_on = None


def upgrade() -> None:
    op.add_column("verdict", sa.Column("drawn_with", sa.String(), nullable=False, server_default=""))
