"""The tables that the store queries; migrations make them."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()
trainings = sa.Table(
    "trainings",
    metadata,
    sa.Column("project", sa.Text, primary_key=True),
    sa.Column("training", sa.Text, primary_key=True),
    sa.Column("version", sa.BigInteger),
    sa.Column("document", sa.Text),
    sa.Column("document_hash", sa.Text),
    sa.Column("owner", sa.Text),
    sa.Column("on_call", sa.Text),
    sa.Column("create_us", sa.BigInteger),
)
runs = sa.Table(
    "runs",
    metadata,
    sa.Column("project", sa.Text, primary_key=True),
    sa.Column("run", sa.Text, primary_key=True),
    sa.Column("position", sa.BigInteger, sa.Identity(always=True)),
    sa.Column("training", sa.Text),
    sa.Column("training_set", sa.Text),
    sa.Column("state", sa.Integer),
    sa.Column("body", sa.LargeBinary),
)
metric_points = sa.Table(
    "metric_points",
    metadata,
    sa.Column("project", sa.Text, primary_key=True),
    sa.Column("run", sa.Text, primary_key=True),
    sa.Column("metric", sa.Text, primary_key=True),
    sa.Column("step", sa.BigInteger, primary_key=True),
    sa.Column("position", sa.BigInteger, sa.Identity(always=True)),
    sa.Column("value", sa.Double),
    sa.Column("time_us", sa.BigInteger),
)
