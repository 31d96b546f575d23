"""Predictions by their id: what outcomes are joined by."""

from alembic import op

revision = "monitor_0004"
down_revision = "monitor_0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # without it, and before the tables were analysed, a sum of outcomes read every prediction of a
    # rollout for each outcome: at some thousands of calls it took longer than its deadline
    op.create_index("predictions_by_id", "predictions", ["project", "prediction_id"])


def downgrade() -> None:
    op.drop_index("predictions_by_id")
