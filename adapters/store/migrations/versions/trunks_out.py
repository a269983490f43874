"""Calls to the outside: through which trunk, and what was dialled there."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns."""
    op.execute("ALTER TABLE interactions ADD COLUMN trunk_out text, ADD COLUMN number_out text")


def downgrade() -> None:
    """Drop them."""
    op.execute("ALTER TABLE interactions DROP COLUMN trunk_out, DROP COLUMN number_out")
