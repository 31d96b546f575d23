"""The tables that the stores query; migrations make them."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()


def _columns(**kinds: type[sa.types.TypeEngine]) -> list[sa.Column]:
    return [sa.Column(name, kind) for name, kind in kinds.items()]


models = sa.Table(
    "models",
    metadata,
    *_columns(
        project=sa.Text,
        model=sa.Text,
        description=sa.Text,
        owner=sa.Text,
        on_call=sa.Text,
        revision=sa.BigInteger,
        latest_version=sa.BigInteger,
        production_version=sa.BigInteger,
        previous_version=sa.BigInteger,
        production_generation=sa.BigInteger,
        latest_generation=sa.BigInteger,
        create_us=sa.BigInteger,
    ),
)
artifacts = sa.Table(
    "artifacts",
    metadata,
    *_columns(digest=sa.Text, kind=sa.Integer, size_bytes=sa.BigInteger, create_us=sa.BigInteger),
)
model_versions = sa.Table(
    "model_versions",
    metadata,
    *_columns(
        project=sa.Text,
        model=sa.Text,
        version=sa.BigInteger,
        digest=sa.Text,
        body=sa.LargeBinary,
        revision=sa.BigInteger,
        approval_state=sa.Integer,
        approval_principal=sa.Text,
        approval_comment=sa.Text,
        approval_us=sa.BigInteger,
    ),
)
evaluations = sa.Table(
    "evaluations",
    metadata,
    *_columns(
        project=sa.Text,
        model=sa.Text,
        evaluation=sa.Text,
        position=sa.BigInteger,
        kind=sa.Text,
        candidate_version=sa.BigInteger,
        rollout=sa.Text,
        body=sa.LargeBinary,
    ),
)
deployments = sa.Table(
    "deployments",
    metadata,
    *_columns(
        project=sa.Text,
        model=sa.Text,
        generation=sa.BigInteger,
        production_version=sa.BigInteger,
        body=sa.LargeBinary,
    ),
)
audit = sa.Table(
    "audit",
    metadata,
    *_columns(
        project=sa.Text,
        sequence=sa.BigInteger,
        action=sa.Text,
        resource=sa.Text,
        principal=sa.Text,
        time_us=sa.BigInteger,
        request_hash=sa.Text,
        previous_hash=sa.Text,
        hash=sa.Text,
    ),
)
