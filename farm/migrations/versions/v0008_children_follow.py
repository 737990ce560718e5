"""Jobs whose children have not all followed them yet; the children of one job in the order of their ids."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
EDITS = sa.text("parent_job_id IS NOT NULL")


def upgrade() -> None:
    op.create_table(
        "unfollowed",
        sa.Column("job_id", BIG, primary_key=True, autoincrement=False),
        sa.Column("project_id", sa.String(), nullable=False),
        sa.Column("after", BIG, nullable=False),
    )
    op.drop_index("job_child", "job")
    op.create_index("job_child", "job", ["parent_job_id", "id"], sqlite_where=EDITS, postgresql_where=EDITS)
