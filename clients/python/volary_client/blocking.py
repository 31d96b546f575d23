"""The blocking client: the asyncio client on a loop of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Self, TypeVar

import grpc
import pyarrow as pa
from volary.inference.v1.prediction_service_pb2 import PredictResponse
from volary.ingest.v1.ingest_service_pb2 import PushRecordsResponse
from volary.registry.v1.model_pb2 import Artifact, ArtifactKind, Production
from volary_kit.outgoing import Retry
from volary_kit.rules.tracing import ClientTracer
from volary_longrunning.operations_pb2 import Operation

from volary_client.aio import DEFAULT_PROJECT, AsyncClient
from volary_client.operations import M, Progress
from volary_client.values import Scalar

T = TypeVar("T")


class Client:
    """Every service of the mesh, blocking.

    What `AsyncClient` can do that has no method here: `client.run(lambda c: c.trainer.GetRun(r))`.
    Safe to share between threads.
    """

    def __init__(
        self,
        address: str,
        api_key: str | None = None,
        *,
        project: str = DEFAULT_PROJECT,
        timeout_s: float | None = None,
        retry: Retry | None = None,
        tls: grpc.ChannelCredentials | None = None,
        tracer: ClientTracer | None = None,
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="volary-client", daemon=True
        )
        self._thread.start()

        async def opened() -> AsyncClient:
            return AsyncClient(
                address,
                api_key,
                project=project,
                timeout_s=timeout_s,
                retry=retry,
                tls=tls,
                tracer=tracer,
            )

        self._client = asyncio.run_coroutine_threadsafe(opened(), self._loop).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and end the loop's thread."""
        self.run(lambda client: client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, call: Callable[[AsyncClient], Awaitable[T]]) -> T:
        """Run one call of the asyncio client and return its result."""

        async def awaited() -> T:
            return await call(self._client)

        return asyncio.run_coroutine_threadsafe(awaited(), self._loop).result()

    def name(self, *parts: str | int) -> str:
        """Return a resource name of the client's project."""
        return self._client.name(*parts)

    def predict(
        self,
        model: str,
        entity_keys: Mapping[str, str],
        request_fields: Mapping[str, Scalar] | None = None,
        *,
        event_time: datetime | None = None,
        min_watermark: datetime | None = None,
        subject: str = "",
        version: int = 0,
        priority: int = 0,
        timeout_s: float | None = None,
    ) -> PredictResponse:
        """Predict by entity, as of `event_time` (default: now).

        Calls that wait for one another go by `priority`: 1 before 2, the normal one, before 3.
        """
        return self.run(
            lambda client: client.predict(
                model,
                entity_keys,
                request_fields,
                event_time=event_time,
                min_watermark=min_watermark,
                subject=subject,
                version=version,
                priority=priority,
                timeout_s=timeout_s,
            )
        )

    def push(
        self,
        source: str,
        records: Sequence[Mapping[str, Scalar]],
        *,
        watermark: datetime | None = None,
    ) -> PushRecordsResponse:
        """Push records of a source, and say up to when nothing is missing."""
        return self.run(lambda client: client.push(source, records, watermark=watermark))

    def wait(
        self, operation: Operation, response: type[M], on_progress: Progress | None = None
    ) -> M:
        """Return what a long-running operation answers; raise what it fails with."""
        return self.run(lambda client: client.wait(operation, response, on_progress))

    def production(self, model: str) -> Production:
        """Say what is in production, trained when, on what, against the previous."""
        return self.run(lambda client: client.production(model))

    def read_snapshot(self, source: str, snapshot: str = "latest") -> pa.Table:
        """Return the rows of a snapshot."""
        return self.run(lambda client: client.read_snapshot(source, snapshot))

    def read_training_set(self, training_set: str) -> pa.Table:
        """Return the rows of a training set; `training_set` is its whole name."""
        return self.run(lambda client: client.read_training_set(training_set))

    def upload(self, data: bytes, kind: ArtifactKind.ValueType) -> Artifact:
        """Store an artifact and return it, named by its digest."""
        return self.run(lambda client: client.upload(data, kind))

    def download(self, digest: str) -> bytes:
        """Return an artifact's bytes, checked against its digest."""
        return self.run(lambda client: client.download(digest))
