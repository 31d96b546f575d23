"""Composition of the ingest service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from volary.ingest.v1 import ingest_service_pb2_grpc
from volary_kit.resources import Resources
from volary_kit.service import Service, Servicer, run

from volary_ingest.catalog import Catalog
from volary_ingest.connectors import read
from volary_ingest.handlers.ingest import IngestHandler
from volary_ingest.pulls import Pulls
from volary_ingest.pushes import Pushes
from volary_ingest.references import ReferenceTables
from volary_ingest.settings import IngestSettings
from volary_ingest.store.frames import Frames

NAME = "volary.ingest.v1.IngestService"


@asynccontextmanager
async def build(kit: Resources[IngestSettings]) -> AsyncIterator[Service]:
    """Wire the service from its resources."""
    database, operations = kit.require_database(), kit.require_operations()
    frames = Frames(kit.settings.data_dir / "files")
    references = ReferenceTables(frames)
    handler = IngestHandler(
        Catalog(database, frames, kit.clock),
        Pulls(database, frames, references, read, kit.clock),
        Pushes(database, references, kit.clock),
        operations,
        database,
    )
    add = ingest_service_pb2_grpc.add_IngestServiceServicer_to_server
    yield Service(servicers=[Servicer(add, handler, NAME)], readiness=[database.ping])


def main() -> None:
    """Run the service until it is told to stop."""
    run("ingest", IngestSettings, build)
