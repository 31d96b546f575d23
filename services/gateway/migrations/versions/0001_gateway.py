"""Traffic, desired versions, replicas, evidence, identity."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "gateway_0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _traffic()
    _replicas()
    _evidence()
    _identity()


def _traffic() -> None:
    op.create_table(
        "traffic",
        sa.Column("project", sa.Text, primary_key=True),
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("weights", JSONB, nullable=False),
        sa.Column("shadow", JSONB),
        sa.Column("stickiness", JSONB, nullable=False),
        sa.Column("rollout", sa.Text, nullable=False),
        sa.Column("step", sa.Text, nullable=False),
        sa.Column("cause", sa.Text, nullable=False),
        sa.Column("principal", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("updated_us", sa.BigInteger, nullable=False),
        sa.Column("production", sa.BigInteger, nullable=False),
        sa.Column("previous", sa.BigInteger, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.CheckConstraint("generation > 0", name="traffic_generation"),
        sa.CheckConstraint("production > 0", name="traffic_production"),
        sa.CheckConstraint(
            "cause IN ('set', 'step', 'promote', 'rollback', 'break_glass', 'brake')",
            name="traffic_cause",
        ),
    )


def _replicas() -> None:
    op.create_table(
        "desired_versions",
        sa.Column("project", sa.Text, primary_key=True),
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("version", sa.BigInteger, primary_key=True),
        sa.Column("digest", sa.Text, nullable=False),
        sa.CheckConstraint("version > 0", name="desired_versions_version"),
    )
    only = op.create_table(
        "desired_revision",
        sa.Column("is_only", sa.Boolean, primary_key=True),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.CheckConstraint("is_only", name="desired_revision_only"),
    )
    op.bulk_insert(only, [{"is_only": True, "revision": 0}])
    op.create_table(
        "replicas",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("incarnation", sa.Text, nullable=False),
        sa.Column("is_draining", sa.Boolean, nullable=False),
        sa.Column("engine", sa.Text, nullable=False),
        sa.Column("versions", JSONB, nullable=False),
    )


def _evidence() -> None:
    op.create_table(
        "evidence_variants",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("rollout", sa.Text, nullable=False),
        sa.Column("step", sa.Text, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("is_shadow", sa.Boolean, nullable=False),
        sa.Column("first_us", sa.BigInteger, nullable=False),
        sa.Column("last_us", sa.BigInteger, nullable=False),
        sa.UniqueConstraint(
            "project", "model", "generation", "version", "is_shadow", "rollout", "step",
            name="evidence_variants_once",
        ),
    )  # fmt: skip
    for name, keys in (
        ("evidence_outcomes", [("code", sa.Integer), ("tier", sa.Text)]),
        ("evidence_latencies", [("bucket", sa.Integer)]),
    ):
        op.create_table(
            name,
            _variant(),
            *(sa.Column(key, kind, primary_key=True) for key, kind in keys),
            sa.Column("attempts", sa.BigInteger, nullable=False),
            sa.CheckConstraint("attempts >= 0", name=f"{name}_attempts"),
        )
    op.create_table(
        "evidence_users",
        _variant(),
        sa.Column("user_hash", sa.LargeBinary, primary_key=True),
        sa.Column("has_error", sa.Boolean, nullable=False),
    )
    op.create_table(
        "evidence_gaps",
        sa.Column("project", sa.Text, primary_key=True),
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("generation", sa.BigInteger, primary_key=True),
        sa.Column("lost", sa.BigInteger, nullable=False),
        sa.Column("is_open", sa.Boolean, nullable=False),
        sa.Column("is_final", sa.Boolean, nullable=False),
    )
    op.create_table(
        "evidence_accounts",
        sa.Column("cluster", sa.Text, primary_key=True),
        sa.Column("records", sa.BigInteger, nullable=False),
        sa.Column("known_lost", sa.BigInteger),
    )
    op.create_table(
        "evidence_flushes",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("flushed_us", sa.BigInteger, nullable=False, index=True),
    )


def _variant() -> sa.Column[int]:
    return sa.Column(
        "variant", sa.BigInteger, sa.ForeignKey("evidence_variants.id"), primary_key=True
    )


def _identity() -> None:
    projects = op.create_table(
        "projects",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("display_name", sa.Text, nullable=False),
        sa.Column("created_us", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(projects, [{"id": "default", "display_name": "Default", "created_us": 0}])
    op.create_table(
        "principals",
        sa.Column("project", sa.Text, sa.ForeignKey("projects.id"), primary_key=True),
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("created_us", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("principal", sa.Text, nullable=False),
        sa.Column("roles", ARRAY(sa.Text), nullable=False),
        sa.Column("token_hash", sa.LargeBinary, nullable=False),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.Column("expires_us", sa.BigInteger, nullable=False),
        sa.Column("revoked_us", sa.BigInteger),
        sa.ForeignKeyConstraint(["project", "principal"], ["principals.project", "principals.id"]),
    )
    op.create_index("api_keys_by_project", "api_keys", ["project", "created_us", "id"])


def downgrade() -> None:
    for table in (
        "api_keys", "principals", "projects", "evidence_flushes", "evidence_accounts",
        "evidence_gaps", "evidence_users", "evidence_latencies", "evidence_outcomes",
        "evidence_variants", "replicas", "desired_revision", "desired_versions", "traffic",
    ):  # fmt: skip
        op.drop_table(table)
