"""What is on a list of illegal pictures is marked; a batch that was resumed is not paused again for the same frames."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("verdict", sa.Column("illegal", sa.Boolean(), nullable=False, server_default=sa.false()))
    few = sa.text("illegal")
    op.create_index("verdict_illegal", "verdict", ["id"], sqlite_where=few, postgresql_where=few)
    op.add_column("batch", sa.Column("forgiven", BIG, nullable=False, server_default="0"))
