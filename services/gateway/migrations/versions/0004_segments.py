"""Segments of callers, each with a split of its own."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "gateway_0004"
down_revision = "gateway_0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "traffic",
        sa.Column("segments", JSONB, nullable=False, server_default=sa.text("'[]'::jsonb")),
    )
