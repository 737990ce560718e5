"""The triggers trust no temporary table, pages of jobs and what they wait for are read from indexes.

The functions of the triggers are written anew after every revision, so here stand the indexes alone.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = depends_on = None

WAITS = sa.text("state IN ('waiting', 'queued') AND reason <> ''")


def upgrade() -> None:
    op.create_index("job_batch", "job", ["batch_id", "id"])
    op.create_index("job_project", "job", ["project_id", "id"])
    op.create_index("job_waits", "job", ["batch_id", "state", "reason"], sqlite_where=WAITS, postgresql_where=WAITS)
