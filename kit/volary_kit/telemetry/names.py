"""Every span name and attribute of the mesh; a test holds stored traces against this registry.

Names follow OpenTelemetry's semantic conventions where these have one.
"""

from __future__ import annotations

from typing import Final

RPC_SYSTEM: Final = "rpc.system"
RPC_METHOD: Final = "rpc.method"
RPC_CODE: Final = "rpc.grpc.status_code"
ERROR_TYPE: Final = "error.type"
SERVER_ADDRESS: Final = "server.address"
DB_SYSTEM: Final = "db.system.name"
DB_OPERATION: Final = "db.operation.name"
DB_ROWS: Final = "db.response.returned_rows"
MESSAGING_SYSTEM: Final = "messaging.system"
MESSAGING_STREAM: Final = "messaging.destination.name"
MESSAGING_GROUP: Final = "messaging.consumer.group.name"
MESSAGING_BATCH: Final = "messaging.batch.message_count"

PROJECT: Final = "volary.project"
PRINCIPAL: Final = "volary.principal"
REQUEST_KEY: Final = "volary.request_key"
MODEL: Final = "volary.model"
VERSION: Final = "volary.version"
DIGEST: Final = "volary.digest"
TIER: Final = "volary.tier"
ROUTE: Final = "volary.route"
SHADOW: Final = "volary.shadow"
PREDICTION: Final = "volary.prediction"
BATCH_ROWS: Final = "volary.batch_rows"
QUEUE_US: Final = "volary.queue_us"
FEATURE_SET: Final = "volary.feature_set"
FEATURE_VIEW: Final = "volary.feature_view"
SNAPSHOT: Final = "volary.snapshot"
SOURCE: Final = "volary.source"
RUN: Final = "volary.run"
OPERATION: Final = "volary.operation"
ATTEMPT: Final = "volary.attempt"
ROLLOUT: Final = "volary.rollout"
GENERATION: Final = "volary.generation"
ROWS: Final = "volary.rows"

ATTRIBUTES: Final = frozenset(
    value for name, value in list(globals().items()) if name.isupper() and isinstance(value, str)
)
