"""The tables that the stores query; migrations make them."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

metadata = sa.MetaData()

feature_views = sa.Table(
    "feature_views",
    metadata,
    sa.Column("project", sa.Text, primary_key=True),
    sa.Column("view", sa.Text, primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True),
    sa.Column("document", JSONB),
    sa.Column("document_hash", sa.Text),
    sa.Column("create_us", sa.BigInteger),
    # the newest watermark that is known to have been reached; null: never loaded
    sa.Column("watermark_us", sa.BigInteger),
)
feature_sets = sa.Table(
    "feature_sets",
    metadata,
    sa.Column("project", sa.Text, primary_key=True),
    sa.Column("feature_set", sa.Text, primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True),
    sa.Column("document", JSONB),
    sa.Column("document_hash", sa.Text),
    sa.Column("schema_hash", sa.Text),
    sa.Column("view_versions", JSONB),
    sa.Column("create_us", sa.BigInteger),
)
training_sets = sa.Table(
    "training_sets",
    metadata,
    sa.Column("project", sa.Text, primary_key=True),
    sa.Column("training_set", sa.Text, primary_key=True),
    sa.Column("position", sa.BigInteger),
    sa.Column("digest", sa.Text),
    sa.Column("body", sa.LargeBinary),
)
