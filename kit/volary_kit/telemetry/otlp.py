"""Spans as OTLP, to a collector over gRPC.

The messages are the kit's own build of the specification (`volary.otlp.v1`): the published
Python packages of OTLP and of Envoy's API overwrite each other's files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from volary_kit.telemetry.encoding import request_of

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


class OtlpExporter(SpanExporter):
    """Send batches to `host:port` or `http(s)://host:port`; a batch has `timeout_s`."""

    def __init__(self, endpoint: str, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        scheme, _, address = endpoint.rpartition("://")
        address = address.rstrip("/")
        if scheme == "https":
            self._channel = grpc.secure_channel(address, grpc.ssl_channel_credentials())
        else:
            self._channel = grpc.insecure_channel(address)
        self._send: Any = self._channel.unary_unary(EXPORT)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send one batch; a collector that does not take it is a failure, not an exception."""
        is_taken = self.forward(request_of(spans))
        return SpanExportResult.SUCCESS if is_taken else SpanExportResult.FAILURE

    def forward(self, request: bytes) -> bool:
        """Send a serialized `ExportTraceServiceRequest`; say whether the collector took it."""
        try:
            self._send(request, timeout=self._timeout_s)
        except grpc.RpcError:
            return False
        return True

    def shutdown(self) -> None:
        """Close the connection."""
        self._channel.close()
