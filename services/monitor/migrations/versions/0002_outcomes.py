"""What came of predictions, in numbers."""

import sqlalchemy as sa
from alembic import op

revision = "monitor_0002"
down_revision = "monitor_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "outcomes",
        sa.Column("project", sa.Text, primary_key=True),
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("metric", sa.Text, primary_key=True),
        sa.Column("prediction_id", sa.Text, primary_key=True),
        # the order of arrival decides which outcome of a unit is its first
        sa.Column("position", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("unit_hash", sa.LargeBinary),
        sa.Column("value", sa.Double, nullable=False),
        sa.Column("known_us", sa.BigInteger, nullable=False),
        sa.Column("recorded_us", sa.BigInteger, nullable=False),
    )
    # an experiment reads what went its routes, by their common beginning
    op.create_index(
        "predictions_by_route",
        "predictions",
        ["project", "model", "route"],
        postgresql_ops={"route": "text_pattern_ops"},
    )


def downgrade() -> None:
    op.drop_index("predictions_by_route")
    op.drop_table("outcomes")
