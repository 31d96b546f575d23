"""`volary.trainer.v1.TrainerService`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import sqlalchemy as sa
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Struct
from volary.trainer.v1 import trainer_service_pb2 as pb
from volary.trainer.v1.run_pb2 import (
    RUN_STATE_CANCELLED,
    RUN_STATE_FAILED,
    RUN_STATE_PENDING,
    RUN_STATE_SUCCEEDED,
    MetricPoint,
    Run,
    Training,
)
from volary.trainer.v1.trainer_service_pb2_grpc import TrainerServiceServicer
from volary_kit import names
from volary_kit.clock import Clock
from volary_kit.database import Database
from volary_kit.documents import canonical, hash_of
from volary_kit.errors import InvalidArgument
from volary_kit.operations import Operations
from volary_kit.pages import cut, page_of
from volary_kit.timestamps import from_us
from volary_longrunning.operations_pb2 import Operation

from volary_trainer import store
from volary_trainer.domain import document

Context = grpc.aio.ServicerContext[Any, Any]
TRAINING = "projects/{project}/trainings/{training}"
TRAINING_SET = "projects/{project}/trainingSets/{set}"
RUN = "projects/{project}/runs/{run}"
VERSION = "projects/{project}/models/{model}/versions/{version}"
ENDED = (RUN_STATE_SUCCEEDED, RUN_STATE_FAILED, RUN_STATE_CANCELLED)
LOOK_EVERY_S = 0.2


class TrainerHandler(TrainerServiceServicer):
    """Declared trainings, their runs, and comparisons of versions."""

    def __init__(self, database: Database, operations: Operations, clock: Clock) -> None:
        self._database = database
        self._operations = operations
        self._clock = clock

    async def ApplyTraining(self, request: pb.ApplyTrainingRequest, context: Context) -> Training:
        ids = names.parse(TRAINING, request.training.name, field="training.name")
        data = MessageToDict(request.training.document)
        found = document.read(data)
        if found.name != ids["training"]:
            raise InvalidArgument(
                "NAME_MISMATCH", "the document has another name", field="training.document.name"
            )
        async with self._database.transaction() as transaction:
            if request.validate_only:
                return _preview(request.training, found, hash_of(data))
            row = await store.put_training(
                transaction,
                **ids,
                document=canonical(data),
                document_hash=hash_of(data),
                owner=found.owner,
                on_call=found.on_call,
                create_us=self._clock.now_us(),
            )
        return _training(row)

    async def GetTraining(self, request: pb.GetTrainingRequest, context: Context) -> Training:
        ids = names.parse(TRAINING, request.name, field="name")
        async with self._database.read() as transaction:
            return _training(await store.get_training(transaction, **ids))

    async def ListTrainings(
        self, request: pb.ListTrainingsRequest, context: Context
    ) -> pb.ListTrainingsResponse:
        project, page = names.project_of(request.parent), page_of(request, str)
        async with self._database.read() as transaction:
            rows = await store.page_trainings(transaction, project, page)
        shown, token = cut(rows, page, lambda row: row.training)
        return pb.ListTrainingsResponse(trainings=map(_training, shown), next_page_token=token)

    async def StartRun(self, request: pb.StartRunRequest, context: Context) -> Operation:
        ids = names.parse(TRAINING, request.training, field="training")
        names.parse(TRAINING_SET, request.training_set, field="training_set")
        async with self._database.transaction() as transaction:
            await store.get_training(transaction, **ids)
            operation = await self._operations.start(
                transaction, method="StartRun", request=request, metadata=pb.RunMetadata()
            )
            run_id = operation.name.rpartition(".")[2]
            run = Run(
                name=f"projects/{ids['project']}/runs/{run_id}",
                training=request.training,
                training_set=request.training_set,
                state=RUN_STATE_PENDING,
                trigger=request.trigger or "manual",
                create_time=from_us(self._clock.now_us()),
            )
            await store.put_run(transaction, ids["project"], run_id, run)
        return operation

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> Run:
        ids = names.parse(RUN, request.name, field="name")
        async with self._database.read() as transaction:
            return await store.get_run(transaction, ids["project"], ids["run"])

    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsResponse:
        project, page = names.project_of(request.parent), page_of(request, int)
        async with self._database.read() as transaction:
            rows = await store.page_runs(transaction, project, page)
        shown, token = cut(rows, page, lambda row: row.position)
        return pb.ListRunsResponse(
            runs=[Run.FromString(row.body) for row in shown], next_page_token=token
        )

    async def CancelRun(self, request: pb.CancelRunRequest, context: Context) -> Run:
        ids = names.parse(RUN, request.name, field="name")
        async with self._database.transaction() as transaction:
            run = await store.get_run(transaction, ids["project"], ids["run"])
            if run.state in ENDED:
                return run
            run.state = RUN_STATE_CANCELLED
            run.end_time.CopyFrom(from_us(self._clock.now_us()))
            await store.put_run(transaction, ids["project"], ids["run"], run)
        await self._operations.cancel(ids["run"])
        return run

    async def WatchRun(
        self, request: pb.WatchRunRequest, context: Context
    ) -> AsyncIterator[pb.WatchRunResponse]:
        ids = names.parse(RUN, request.name, field="name")
        position, last = 0, None
        while last is None or last.state not in ENDED:
            async with self._database.read() as transaction:
                run = await store.get_run(transaction, ids["project"], ids["run"])
                rows = await store.points_after(transaction, ids["project"], ids["run"], position)
            if rows or run != last:
                position = rows[-1].position if rows else position
                yield pb.WatchRunResponse(run=run, points=map(_point, rows))
            last = run
            await asyncio.sleep(0 if run.state in ENDED else LOOK_EVERY_S)

    async def VerifyRun(self, request: pb.VerifyRunRequest, context: Context) -> Operation:
        names.parse(VERSION, request.model_version, field="model_version")
        async with self._database.transaction() as transaction:
            return await self._operations.start(
                transaction, method="VerifyRun", request=request, metadata=pb.RunMetadata()
            )

    async def BuildVariant(self, request: pb.BuildVariantRequest, context: Context) -> Operation:
        names.parse(VERSION, request.model_version, field="model_version")
        async with self._database.transaction() as transaction:
            return await self._operations.start(
                transaction, method="BuildVariant", request=request, metadata=pb.RunMetadata()
            )

    async def CompareVersions(
        self, request: pb.CompareVersionsRequest, context: Context
    ) -> Operation:
        names.parse(VERSION, request.candidate, field="candidate")
        if request.baseline:
            names.parse(VERSION, request.baseline, field="baseline")
        names.parse(TRAINING_SET, request.training_set, field="training_set")
        async with self._database.transaction() as transaction:
            return await self._operations.start(
                transaction, method="CompareVersions", request=request, metadata=pb.RunMetadata()
            )


def _training(row: sa.Row[Any]) -> Training:
    return Training(
        name=f"projects/{row.project}/trainings/{row.training}",
        document=ParseDict(json.loads(row.document), Struct()),
        version=row.version,
        document_hash=row.document_hash,
        owner=row.owner,
        on_call=row.on_call,
        create_time=from_us(row.create_us),
    )


def _preview(training: Training, found: document.Training, document_hash: str) -> Training:
    return Training(
        name=training.name,
        document=training.document,
        document_hash=document_hash,
        owner=found.owner,
        on_call=found.on_call,
    )


def _point(row: sa.Row[Any]) -> MetricPoint:
    return MetricPoint(metric=row.metric, step=row.step, value=row.value, time=from_us(row.time_us))
