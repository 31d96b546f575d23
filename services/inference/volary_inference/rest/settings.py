"""Settings of a translator that runs as a process of its own, `VOLARY_REST_...`."""

from __future__ import annotations

from pydantic import Field
from volary_kit.settings import ServiceSettings

MAX_BODY_BYTES = 64 << 20  # what a ModelInfer may have
MAX_JSON_BYTES = 8 << 20  # read in well under 100 ms, and more than 800,000 numbers


class RestSettings(ServiceSettings, service="rest"):
    """`upstream_address` is where the gRPC calls go: Envoy's client address, or a replica.

    A body has at most `max_body_bytes`, uncompressed; of them `max_json_bytes` may be JSON, the
    rest is binary tensors.
    """

    upstream_address: str = "127.0.0.1:7700"
    max_body_bytes: int = Field(default=MAX_BODY_BYTES, ge=1_024)
    max_json_bytes: int = Field(default=MAX_JSON_BYTES, ge=1_024)
