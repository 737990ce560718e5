"""How far each running job is; and verdicts on previews."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
STAGES = "stage IN ('prompt', 'input', 'frame', 'preview')"


def upgrade() -> None:
    op.create_table(
        "progress",
        sa.Column("job_id", BIG, primary_key=True, autoincrement=False),
        sa.Column("project_id", sa.String(), nullable=False),
        *(sa.Column(name, sa.Integer(), nullable=False) for name in ("attempt", "step", "total")),
        sa.Column("preview", sa.LargeBinary(), nullable=True),
        sa.Column("mime", sa.String(), nullable=True),
        sa.Column("updated_at", sa.Float(), nullable=False),
    )
    with op.batch_alter_table("verdict") as verdict:  # SQLite changes no condition of a table: it is copied
        verdict.drop_constraint("verdict_stage", type_="check")
        verdict.create_check_constraint("verdict_stage", STAGES)
