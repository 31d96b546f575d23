"""Policies, predictions and their log, truth, judged windows, drift, alerts."""

import sqlalchemy as sa
from alembic import op

revision = "monitor_0001"
down_revision = None
branch_labels = None
depends_on = None


def _model_key() -> list[sa.Column]:
    return [
        sa.Column("project", sa.Text, primary_key=True),
        sa.Column("model", sa.Text, primary_key=True),
    ]


def upgrade() -> None:
    op.create_table(
        "policies",
        sa.Column("project", sa.Text, primary_key=True),
        sa.Column("policy", sa.Text, primary_key=True),
        sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("is_newest", sa.Boolean, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("document_hash", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("on_call", sa.Text, nullable=False),
        sa.Column("create_us", sa.BigInteger, nullable=False),
        sa.CheckConstraint("owner <> '' AND on_call <> ''", name="policies_have_an_owner"),
    )
    newest = sa.text("is_newest")
    op.create_index(
        "policies_newest", "policies", ["project", "policy"], unique=True, postgresql_where=newest
    )
    # a model is watched by one policy: its windows and alerts would be told apart by nothing
    op.create_index(
        "policies_of_model", "policies", ["project", "model"], unique=True, postgresql_where=newest
    )
    op.create_table(
        "predictions",
        sa.Column("position", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("event_id", sa.Text, nullable=False, unique=True),
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("prediction_id", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("tier", sa.Text, nullable=False),
        sa.Column("shadow", sa.Boolean, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("event_us", sa.BigInteger, nullable=False),
        sa.Column("schema_hash", sa.Text, nullable=False),
        sa.Column("score", sa.Double),
        sa.Column("code", sa.Integer, nullable=False),
        sa.Column("trace_id", sa.Text, nullable=False),
        sa.Column("route", sa.Text, nullable=False),
    )
    op.create_index("predictions_by_time", "predictions", ["project", "model", "event_us"])
    op.create_index("predictions_by_subject", "predictions", ["project", "model", "subject"])
    op.create_index("predictions_by_id", "predictions", ["project", "prediction_id"])
    op.create_table(
        "log_pending",
        sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("day", sa.Text, nullable=False),
        sa.Column("event_us", sa.BigInteger, nullable=False),
        sa.Column("since_us", sa.BigInteger, nullable=False),
        sa.Column("event", sa.LargeBinary, nullable=False),
    )
    op.create_index("log_pending_by_day", "log_pending", ["project", "model", "day", "position"])
    op.create_table(
        "log_files",
        sa.Column("path", sa.Text, primary_key=True),
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("day", sa.Text, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.CheckConstraint("rows > 0", name="log_files_are_not_empty"),
    )
    op.create_index("log_files_by_day", "log_files", ["project", "model", "day"])
    op.create_table(
        "truths",
        *_model_key(),
        sa.Column("subject", sa.Text, primary_key=True),
        sa.Column("label", sa.Double, nullable=False),
        sa.Column("known_us", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "watermarks",
        sa.Column("project", sa.Text, primary_key=True),
        sa.Column("source", sa.Text, primary_key=True),
        sa.Column("watermark_us", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "windows",
        *_model_key(),
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("start_us", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("end_us", sa.BigInteger, nullable=False),
        # null where there was too little to judge by
        sa.Column("is_bad", sa.Boolean),
    )
    op.create_table(
        "drift",
        *_model_key(),
        sa.Column("start_us", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("rank", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("end_us", sa.BigInteger, nullable=False),
        sa.Column("feature", sa.Text, nullable=False),
        sa.Column("values", sa.BigInteger, nullable=False),
        sa.Column("psi", sa.Double, nullable=False),
        sa.Column("ks", sa.Double, nullable=False),
        sa.Column("p_value", sa.Double, nullable=False),
        sa.Column("adjusted_p_value", sa.Double, nullable=False),
        sa.Column("mean_shift_sd", sa.Double, nullable=False),
        sa.Column("out_of_range", sa.BigInteger, nullable=False),
        sa.Column("has_drifted", sa.Boolean, nullable=False),
        sa.Column("reference", sa.Text, nullable=False),
    )
    op.execute("CREATE SEQUENCE alert_changes")
    op.create_table(
        "alerts",
        sa.Column("project", sa.Text, primary_key=True),
        sa.Column("alert", sa.Text, primary_key=True),
        sa.Column("change", sa.BigInteger, nullable=False, index=True),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("severity", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("targets", sa.ARRAY(sa.Text), nullable=False),
        sa.Column("value", sa.Double, nullable=False),
        sa.Column("threshold", sa.Double, nullable=False),
        sa.Column("summary", sa.Text, nullable=False),
        sa.Column("window_start_us", sa.BigInteger, nullable=False),
        sa.Column("window_end_us", sa.BigInteger, nullable=False),
        sa.Column("triggers_retrain", sa.Boolean, nullable=False),
        sa.Column("training", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("on_call", sa.Text, nullable=False),
        sa.Column("raise_us", sa.BigInteger, nullable=False),
        sa.Column("resolve_us", sa.BigInteger),
        sa.Column("acknowledged_by", sa.Text, nullable=False, server_default=""),
        sa.CheckConstraint("state IN ('firing', 'resolved')", name="alerts_state"),
        sa.CheckConstraint(
            "(state = 'resolved') = (resolve_us IS NOT NULL)", name="alerts_resolved"
        ),
    )
    op.create_index(
        "alerts_firing_once",
        "alerts",
        ["project", "model", "kind"],
        unique=True,
        postgresql_where=sa.text("state = 'firing'"),
    )


def downgrade() -> None:
    for table in (
        "alerts",
        "drift",
        "windows",
        "watermarks",
        "truths",
        "log_files",
        "log_pending",
        "predictions",
        "policies",
    ):
        op.drop_table(table)
    op.execute("DROP SEQUENCE alert_changes")
