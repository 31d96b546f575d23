"""Put the trainer together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from volary.trainer.v1.trainer_service_pb2_grpc import add_TrainerServiceServicer_to_server
from volary_kit.service import Resources, Service, Servicer, run

from volary_trainer.building import Builder
from volary_trainer.comparison import Comparer
from volary_trainer.handlers.trainer import TrainerHandler
from volary_trainer.peers import TrainingSets, Versions
from volary_trainer.settings import TrainerSettings
from volary_trainer.tracking import PostgresTracker
from volary_trainer.work import Trainer


@asynccontextmanager
async def build(kit: Resources[TrainerSettings]) -> AsyncIterator[Service]:
    """Yield the service; it needs a database, and Temporal to start runs."""
    database, operations = kit.require_database(), kit.require_operations()
    sets, versions = TrainingSets(kit.channels), Versions(kit.channels)
    tracker = PostgresTracker(database, kit.clock)
    trainer = Trainer(kit.settings, database, kit.clock, tracker, sets, versions)
    comparer = Comparer(kit.settings.data_dir / "comparisons", sets, versions)
    builder = Builder(kit.settings, database, sets, versions)
    operations.register("StartRun", trainer.start_run)
    operations.register("VerifyRun", trainer.verify_run)
    operations.register("BuildVariant", builder.build)
    operations.register("CompareVersions", comparer.compare)
    yield Service(
        servicers=[
            Servicer(
                add_TrainerServiceServicer_to_server,
                TrainerHandler(database, operations, kit.clock),
                "volary.trainer.v1.TrainerService",
            )
        ],
        readiness=[database.ping],
    )


def main() -> None:
    """Run the trainer until it is told to stop."""
    run("trainer", TrainerSettings, build)
