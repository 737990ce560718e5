"""The signed heads of the audit chain are never changed or deleted: the triggers say so, no table changes."""

revision = "0002"
down_revision = "0001"
branch_labels = depends_on = None


def upgrade() -> None:
    pass
