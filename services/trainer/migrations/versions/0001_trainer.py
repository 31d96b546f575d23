"""Declared trainings, runs, metric points."""

import sqlalchemy as sa
from alembic import op

revision = "trainer_0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "trainings",
        sa.Column("project", sa.Text, primary_key=True),
        sa.Column("training", sa.Text, primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("document_hash", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("on_call", sa.Text, nullable=False),
        sa.Column("create_us", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "runs",
        sa.Column("project", sa.Text, primary_key=True),
        sa.Column("run", sa.Text, primary_key=True),
        sa.Column("position", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("training", sa.Text, nullable=False),
        sa.Column("training_set", sa.Text, nullable=False),
        sa.Column("state", sa.Integer, nullable=False),
        # the run as a serialized message: it is read whole, and grows without a migration
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_index("runs_of_project", "runs", ["project", sa.text("position DESC")])
    op.create_table(
        "metric_points",
        sa.Column("project", sa.Text, primary_key=True),
        sa.Column("run", sa.Text, primary_key=True),
        sa.Column("metric", sa.Text, primary_key=True),
        sa.Column("step", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("position", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("value", sa.Double, nullable=False),
        sa.Column("time_us", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(["project", "run"], ["runs.project", "runs.run"]),
    )


def downgrade() -> None:
    for table in ("metric_points", "runs", "trainings"):
        op.drop_table(table)
