"""Fallbacks that begin with the last prediction of the same question."""

import sqlalchemy as sa
from alembic import op

revision = "gateway_0006"
down_revision = "gateway_0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "fallbacks", sa.Column("cached_us", sa.BigInteger, nullable=False, server_default="0")
    )
    op.create_check_constraint("fallbacks_cached", "fallbacks", "cached_us >= 0")
