"""Limits, and the fallbacks of models."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "gateway_0003"
down_revision = "gateway_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "limits",
        sa.Column("project", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("subject", sa.Text, primary_key=True),
        sa.Column("calls_per_s", sa.BigInteger, nullable=False),
        sa.Column("burst", sa.BigInteger, nullable=False),
        sa.Column("updated_us", sa.BigInteger, nullable=False),
        sa.CheckConstraint("kind IN ('model', 'principal')", name="limits_kind"),
        sa.CheckConstraint("calls_per_s > 0 AND burst > 0", name="limits_positive"),
    )
    op.create_table(
        "fallbacks",
        sa.Column("project", sa.Text, primary_key=True),
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("tier", sa.Text, nullable=False),
        sa.Column("outputs", JSONB, nullable=False),
        sa.Column("updated_us", sa.BigInteger, nullable=False),
        sa.CheckConstraint("tier IN ('rule', 'none')", name="fallbacks_tier"),
    )
