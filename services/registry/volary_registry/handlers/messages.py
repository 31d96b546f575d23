"""Rows to messages."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from volary.registry.v1.model_pb2 import (
    Approval,
    Artifact,
    AuditEntry,
    Deployment,
    Evaluation,
    Model,
    ModelVersion,
)
from volary_kit.timestamps import from_us

from volary_registry.domain.chain import Link

Row = sa.Row[Any]


def model_of(row: Row) -> Model:
    """Return a model."""
    return Model(
        name=f"projects/{row.project}/models/{row.model}",
        description=row.description,
        owner=row.owner,
        on_call=row.on_call,
        latest_version=row.latest_version,
        production_version=row.production_version,
        etag=str(row.revision),
        create_time=from_us(row.create_us),
    )


def version_of(row: Row) -> ModelVersion:
    """Return a version with the newest decision on it."""
    version = ModelVersion.FromString(row.body)
    version.etag = str(row.revision)
    version.approval.CopyFrom(
        Approval(
            state=row.approval_state,
            principal=row.approval_principal,
            comment=row.approval_comment,
            decide_time=None if row.approval_us is None else from_us(row.approval_us),
        )
    )
    return version


def artifact_of(row: Row) -> Artifact:
    """Return an artifact."""
    return Artifact(
        digest=row.digest,
        kind=row.kind,
        size_bytes=row.size_bytes,
        create_time=from_us(row.create_us),
    )


def evaluation_of(row: Row) -> Evaluation:
    """Return a verdict."""
    return Evaluation.FromString(row.body)


def deployment_of(row: Row) -> Deployment:
    """Return a change of what serves."""
    return Deployment.FromString(row.body)


def audit_of(link: Link) -> AuditEntry:
    """Return an entry of the audit chain."""
    return AuditEntry(
        sequence=link.sequence,
        action=link.fact.action,
        resource=link.fact.resource,
        principal=link.fact.principal,
        time=from_us(link.fact.time_us),
        request_hash=link.fact.request_hash,
        previous_hash=link.previous_hash,
        hash=link.hash,
    )
