"""First attempts are counted beside all attempts."""

import sqlalchemy as sa
from alembic import op

revision = "gateway_0002"
down_revision = "gateway_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # what is counted already does not say which attempts were retries: all count as first
    op.add_column(
        "evidence_outcomes",
        sa.Column("firsts", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    )
    op.execute("UPDATE evidence_outcomes SET firsts = attempts")
