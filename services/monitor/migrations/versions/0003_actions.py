"""The actions that decisions recommend, on their way to whoever acts on them."""

import sqlalchemy as sa
from alembic import op

revision = "monitor_0003"
down_revision = "monitor_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "actions",
        sa.Column("position", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("prediction_id", sa.Text, nullable=False),
        sa.Column("request_key", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("reason_codes", sa.ARRAY(sa.Text), nullable=False),
        sa.Column("score", sa.Double),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("event_us", sa.BigInteger, nullable=False),
        sa.Column("webhook", sa.Text, nullable=False),
        sa.Column("workflow", sa.Text, nullable=False),
        sa.Column("task_queue", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("due_us", sa.BigInteger, nullable=False),
        sa.Column("problem", sa.Text, nullable=False),
        sa.Column("create_us", sa.BigInteger, nullable=False),
        sa.Column("settle_us", sa.BigInteger),
        sa.CheckConstraint("state IN ('waiting', 'done', 'dead')", name="actions_state"),
        sa.CheckConstraint("(webhook = '') <> (workflow = '')", name="actions_have_one_target"),
        sa.UniqueConstraint("project", "prediction_id", name="actions_of_prediction"),
        # an attempt that Envoy made again is another prediction of the same call
        sa.UniqueConstraint("project", "model", "request_key", name="actions_of_call"),
    )
    op.create_index(
        "actions_due", "actions", ["due_us"], postgresql_where=sa.text("state = 'waiting'")
    )


def downgrade() -> None:
    op.drop_table("actions")
