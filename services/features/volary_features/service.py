"""Put features together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from volary.features.v1.features_service_pb2_grpc import add_FeaturesServiceServicer_to_server
from volary_kit import streams
from volary_kit.artifacts import ArtifactStore
from volary_kit.service import Resources, Service, Servicer, run

from volary_features.definitions import Definitions
from volary_features.handlers.features import FeaturesHandler
from volary_features.materialising import Materialising
from volary_features.online.folding import Folding
from volary_features.online.reading import LastKnown, Reading
from volary_features.online.settling import Settling
from volary_features.online.store import OnlineStore
from volary_features.online.waiting import Watermarks
from volary_features.settings import FeaturesSettings
from volary_features.snapshots import Snapshots
from volary_features.training_sets import TrainingSets


@asynccontextmanager
async def build(kit: Resources[FeaturesSettings]) -> AsyncIterator[Service]:
    """Yield the service; it needs a database, and Redis for the online state and its stream."""
    database, redis, settings = kit.require_database(), kit.require_redis(), kit.settings
    definitions = Definitions(database, kit.clock)
    store = OnlineStore(redis, timeout_s=settings.store_timeout_s)
    watermarks, settling = Watermarks(store), Settling()
    snapshots = Snapshots(kit.channels.to("ingest"))
    materialising = Materialising(definitions, snapshots, store, watermarks, settling)
    folding = Folding(store, definitions, settling)
    events = streams.ConsumerGroup(
        redis,
        streams.SOURCE_EVENTS,
        group="features",
        consumer=f"features-{settings.instance}",
        handler=folding.handle,
    )
    handler = FeaturesHandler(
        database,
        definitions,
        kit.require_operations(),
        TrainingSets(database, snapshots, ArtifactStore(settings.data_dir / "sets"), kit.clock),
        materialising,
        Reading(store, definitions, watermarks, LastKnown(settings.last_known_entities)),
        snapshots,
        kit.clock,
    )
    consuming = [events.run, definitions.save_watermarks, materialising.repair]
    yield Service(
        servicers=[
            Servicer(
                add_FeaturesServiceServicer_to_server,
                handler,
                "volary.features.v1.FeaturesService",
            )
        ],
        readiness=[database.ping],
        background=[watermarks.watch, *(consuming if settings.consumes else [])],
    )


def main() -> None:
    """Run features until it is told to stop."""
    run("features", FeaturesSettings, build)
