"""Gateway's tables; the schema is set by the connection."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

metadata = sa.MetaData()

traffic = sa.Table(
    "traffic",
    metadata,
    sa.Column("project", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("generation", sa.BigInteger, nullable=False),
    sa.Column("weights", JSONB, nullable=False),
    sa.Column("shadow", JSONB(none_as_null=True)),
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
    sa.Column("segments", JSONB, nullable=False),
    sa.Column("audience", JSONB(none_as_null=True)),
)

desired_versions = sa.Table(
    "desired_versions",
    metadata,
    sa.Column("project", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True),
    sa.Column("digest", sa.Text, nullable=False),
)

desired_revision = sa.Table(
    "desired_revision",
    metadata,
    sa.Column("is_only", sa.Boolean, primary_key=True),
    sa.Column("revision", sa.BigInteger, nullable=False),
)

rollout_fences = sa.Table(
    "rollout_fences",
    metadata,
    sa.Column("project", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("generation", sa.BigInteger, nullable=False),
)

replicas = sa.Table(
    "replicas",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("address", sa.Text, nullable=False),
    sa.Column("incarnation", sa.Text, nullable=False),
    sa.Column("is_draining", sa.Boolean, nullable=False),
    sa.Column("engine", sa.Text, nullable=False),
    sa.Column("versions", JSONB, nullable=False),
)

evidence_variants = sa.Table(
    "evidence_variants",
    metadata,
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

evidence_outcomes = sa.Table(
    "evidence_outcomes",
    metadata,
    sa.Column("variant", sa.BigInteger, primary_key=True),
    sa.Column("code", sa.Integer, primary_key=True),
    sa.Column("tier", sa.Text, primary_key=True),
    sa.Column("attempts", sa.BigInteger, nullable=False),
    sa.Column("firsts", sa.BigInteger, nullable=False),
)

evidence_latencies = sa.Table(
    "evidence_latencies",
    metadata,
    sa.Column("variant", sa.BigInteger, primary_key=True),
    sa.Column("bucket", sa.Integer, primary_key=True),
    sa.Column("attempts", sa.BigInteger, nullable=False),
)

evidence_users = sa.Table(
    "evidence_users",
    metadata,
    sa.Column("variant", sa.BigInteger, primary_key=True),
    sa.Column("user_hash", sa.LargeBinary, primary_key=True),
    sa.Column("has_error", sa.Boolean, nullable=False),
)

evidence_gaps = sa.Table(
    "evidence_gaps",
    metadata,
    sa.Column("project", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("generation", sa.BigInteger, primary_key=True),
    sa.Column("lost", sa.BigInteger, nullable=False),
    sa.Column("is_open", sa.Boolean, nullable=False),
    sa.Column("is_final", sa.Boolean, nullable=False),
)

evidence_accounts = sa.Table(
    "evidence_accounts",
    metadata,
    sa.Column("cluster", sa.Text, primary_key=True),
    sa.Column("records", sa.BigInteger, nullable=False),
    sa.Column("known_lost", sa.BigInteger),
)

evidence_flushes = sa.Table(
    "evidence_flushes",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("flushed_us", sa.BigInteger, nullable=False),
)

limits = sa.Table(
    "limits",
    metadata,
    sa.Column("project", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("subject", sa.Text, primary_key=True),
    sa.Column("calls_per_s", sa.BigInteger, nullable=False),
    sa.Column("burst", sa.BigInteger, nullable=False),
    sa.Column("updated_us", sa.BigInteger, nullable=False),
)

fallbacks = sa.Table(
    "fallbacks",
    metadata,
    sa.Column("project", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("tier", sa.Text, nullable=False),
    sa.Column("outputs", JSONB, nullable=False),
    sa.Column("updated_us", sa.BigInteger, nullable=False),
    sa.Column("cached_us", sa.BigInteger, nullable=False),
)

projects = sa.Table(
    "projects",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("display_name", sa.Text, nullable=False),
    sa.Column("created_us", sa.BigInteger, nullable=False),
)

principals = sa.Table(
    "principals",
    metadata,
    sa.Column("project", sa.Text, sa.ForeignKey("projects.id"), primary_key=True),
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("created_us", sa.BigInteger, nullable=False),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
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
