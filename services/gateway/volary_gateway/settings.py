"""Settings of gateway, from `VOLARY_GATEWAY_...`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from volary_kit.settings import ServiceSettings


class GatewaySettings(ServiceSettings, service="gateway"):
    """What gateway needs beyond every service: Envoy, the issuing key, the services at the edge.

    `envoy_listen` is the host:port that clients use, `envoy_admin` Envoy's admin host:port (a
    loss of evidence is found by its counters; without it evidence is never complete),
    `envoy_credential_file` the file that the bootstrap reads its token from, written here.
    `advertised_address` is where Envoy reaches whichever gateway leads (default: this one),
    `fallback_port` answers for models without a living replica, 0: such calls are UNAVAILABLE.
    `issuing_key_file` signs API keys; its public half stands in the JWKS file under
    `issuing_key_id` with `iss` `volary`. Of `revocations_file`, which all services read, gateway
    is the writer.
    """

    envoy_listen: str = "127.0.0.1:0"
    advertised_address: str | None = None
    fallback_port: int = Field(default=0, ge=0, le=65_535)
    envoy_admin: str | None = None
    envoy_credential_file: Path | None = None
    issuing_key_file: Path | None = None
    issuing_key_id: str = "gateway-issuing"
    ingest_address: str | None = None
    features_address: str | None = None
    trainer_address: str | None = None
    registry_address: str | None = None
    monitor_address: str | None = None
    workflows_address: str | None = None
    rest_address: str | None = None  # who turns V2 over HTTP into gRPC
