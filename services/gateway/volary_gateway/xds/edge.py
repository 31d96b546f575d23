"""What the edge is made of apart from traffic: fixed while a process lives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import volary_contract

INFERENCE = "/inference.GRPCInferenceService/"
PREDICTION = "/volary.inference.v1."
OPERATIONS = "/google.longrunning.Operations/"

# clusters that are not of a version
CONTROL_PLANE = "gateway-control"  # in the bootstrap: ADS and ALS
INFERENCE_CLUSTER = "inference"  # any replica that is attached
TELEMETRY_CLUSTER = "telemetry"
REST_CLUSTER = "rest"  # the translators from HTTP, which call back

REST = "/v2"  # begins every path of V2 over HTTP, and no gRPC method's
REST_OPEN = (f"{REST}/health/live", f"{REST}/health/ready")  # as the calls that they stand for


class RouteKind(StrEnum):
    """How a method finds its cluster."""

    MODEL = "model"  # by (project, model of the first message), through the split
    INFO = "info"  # by model, never split, never evidence
    OPERATION = "operation"  # by the service in the operation's name
    DEFAULT = "default"  # by the method alone


@dataclass(frozen=True, slots=True)
class Method:
    """A method that is reachable at the edge."""

    path: str
    kind: RouteKind
    service: str
    field: str
    is_anonymous: bool
    default_deadline_ms: int
    max_deadline_ms: int

    @property
    def full_name(self) -> str:
        """`package.Service.Method`, as descriptor sets name it."""
        return self.path[1:].replace("/", ".")


@dataclass(frozen=True, slots=True)
class Edge:
    """Where Envoy listens, whom it believes, what it may reach."""

    listen: str
    jwks: str
    descriptor_set: bytes
    methods: tuple[Method, ...]
    services: Mapping[str, str] = field(default_factory=dict)
    otlp: str = ""
    rest: str = ""  # who turns V2 over HTTP into gRPC; empty: nobody
    fallback: str = ""  # who answers for models without a living replica; empty: nobody


def edge_methods(
    rows: Mapping[str, volary_contract.MethodRow] | None = None,
) -> tuple[Method, ...]:
    """Return every method that the contract opens at the edge, in order of path."""
    rows = volary_contract.methods() if rows is None else rows
    return tuple(_method(path, row) for path, row in sorted(rows.items()) if row["edge"])


def _method(path: str, row: volary_contract.MethodRow) -> Method:
    kind, name = RouteKind.DEFAULT, row["route_field"]
    if path.startswith(OPERATIONS):
        kind, name = RouteKind.OPERATION, "name"
    elif name:
        is_information = path.startswith(INFERENCE) and not path.endswith("Infer")
        kind = RouteKind.INFO if is_information else RouteKind.MODEL
    return Method(
        path=path,
        kind=kind,
        service=_service(path),
        field=name,
        is_anonymous="anonymous" in row["allow"],
        default_deadline_ms=row["default_deadline_ms"],
        max_deadline_ms=row["max_deadline_ms"],
    )


def _service(path: str) -> str:
    if path.startswith(INFERENCE):
        return "inference"
    parts = path[1:].split(".")
    return parts[1] if parts[0] == "volary" else ""
