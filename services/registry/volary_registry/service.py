"""Put the registry together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from volary.registry.v1.registry_service_pb2_grpc import (
    add_ArtifactServiceServicer_to_server,
    add_RegistryServiceServicer_to_server,
)
from volary_kit import streams
from volary_kit.artifacts import ArtifactStore
from volary_kit.service import Resources, Service, Servicer, run

from volary_registry.handlers.artifacts import ArtifactHandler
from volary_registry.handlers.registry import RegistryHandler
from volary_registry.projection import Projection
from volary_registry.settings import RegistrySettings


@asynccontextmanager
async def build(kit: Resources[RegistrySettings]) -> AsyncIterator[Service]:
    """Yield the service; it needs a database, and Redis for the deployment history."""
    database, redis = kit.require_database(), kit.require_redis()
    files = ArtifactStore(kit.settings.data_dir / "artifacts")
    traffic = streams.ConsumerGroup(
        redis,
        streams.TRAFFIC_EVENTS,
        group="registry",
        consumer=f"registry-{kit.settings.instance}",
        handler=Projection(database).handle,
    )
    yield Service(
        servicers=[
            Servicer(
                add_RegistryServiceServicer_to_server,
                RegistryHandler(database, files, kit.clock),
                "volary.registry.v1.RegistryService",
            ),
            Servicer(
                add_ArtifactServiceServicer_to_server,
                ArtifactHandler(database, files, kit.clock, kit.settings),
                "volary.registry.v1.ArtifactService",
            ),
        ],
        readiness=[database.ping],
        background=[traffic.run],
    )


def main() -> None:
    """Run the registry until it is told to stop."""
    run("registry", RegistrySettings, build)
