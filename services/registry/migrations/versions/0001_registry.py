"""Models, versions, approvals, evaluations, artifacts, deployments, audit."""

import sqlalchemy as sa
from alembic import op

revision = "registry_0001"
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
        "models",
        *_model_key(),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("on_call", sa.Text, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False, server_default="1"),
        sa.Column("latest_version", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("production_version", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("previous_version", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("production_generation", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("latest_generation", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("create_us", sa.BigInteger, nullable=False),
        sa.CheckConstraint("owner <> '' AND on_call <> ''", name="models_have_an_owner"),
        sa.CheckConstraint("production_version <= latest_version", name="production_exists"),
    )
    op.create_table(
        "artifacts",
        sa.Column("digest", sa.Text, primary_key=True),
        sa.Column("kind", sa.Integer, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("create_us", sa.BigInteger, nullable=False),
        sa.CheckConstraint("digest ~ '^sha256:[0-9a-f]{64}$'", name="artifacts_digest"),
    )
    op.create_table(
        "model_versions",
        *_model_key(),
        sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("digest", sa.Text, sa.ForeignKey("artifacts.digest"), nullable=False),
        # what was said of the version when it was made, as a serialized ModelVersion: it never
        # changes, is read whole, and grows with the contract without a migration
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False, server_default="1"),
        sa.Column("approval_state", sa.Integer, nullable=False),
        sa.Column("approval_principal", sa.Text, nullable=False, server_default=""),
        sa.Column("approval_comment", sa.Text, nullable=False, server_default=""),
        sa.Column("approval_us", sa.BigInteger),
        sa.ForeignKeyConstraint(["project", "model"], ["models.project", "models.model"]),
        sa.CheckConstraint("version > 0", name="versions_count_from_one"),
    )
    op.create_table(
        "evaluations",
        *_model_key(),
        sa.Column("evaluation", sa.Text, primary_key=True),
        sa.Column("position", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("candidate_version", sa.BigInteger, nullable=False),
        sa.Column("rollout", sa.Text, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.ForeignKeyConstraint(["project", "model"], ["models.project", "models.model"]),
    )
    op.create_index(
        "evaluations_of_model", "evaluations", ["project", "model", sa.text("position DESC")]
    )
    op.create_index(
        "evaluations_of_version",
        "evaluations",
        ["project", "model", "candidate_version", "kind", sa.text("position DESC")],
    )
    op.create_table(
        "deployments",
        *_model_key(),
        sa.Column("generation", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("production_version", sa.BigInteger, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("project", sa.Text, primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("resource", sa.Text, nullable=False),
        sa.Column("principal", sa.Text, nullable=False),
        sa.Column("time_us", sa.BigInteger, nullable=False),
        sa.Column("request_hash", sa.Text, nullable=False),
        sa.Column("previous_hash", sa.Text, nullable=False),
        sa.Column("hash", sa.Text, nullable=False),
    )


def downgrade() -> None:
    for table in (
        "audit",
        "deployments",
        "evaluations",
        "model_versions",
        "artifacts",
        "models",
    ):
        op.drop_table(table)
