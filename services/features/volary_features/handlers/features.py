"""`volary.features.v1.FeaturesService`."""

from __future__ import annotations

from collections.abc import AsyncIterator

from google.protobuf.message import Message
from volary.features.v1 import features_service_pb2 as pb
from volary.features.v1.feature_pb2 import FeatureSet, FeatureView, TrainingSet
from volary.features.v1.features_service_pb2_grpc import FeaturesServiceServicer
from volary_kit.calls import current_call
from volary_kit.clock import Clock
from volary_kit.database import Database
from volary_kit.names import parse, project_of
from volary_kit.operations import OperationContext, Operations
from volary_kit.pages import cut, page_of
from volary_kit.timestamps import duration_from_us, from_us, to_us
from volary_longrunning.operations_pb2 import Operation

from volary_features.definitions import Definitions, resolve
from volary_features.domain.view import read_view
from volary_features.handlers import Context, messages
from volary_features.materialising import Materialising
from volary_features.online.reading import Reading
from volary_features.skew import skew_of
from volary_features.snapshots import Snapshots
from volary_features.store import sets, trainings, views
from volary_features.training_sets import Order, TrainingSets

VIEW = "projects/{project}/featureViews/{view}"
SET = "projects/{project}/featureSets/{feature_set}"
TRAINING_SET = "projects/{project}/trainingSets/{training_set}"
SOURCE = "projects/{project}/sources/{source}"
BUILD, MATERIALISE = "BuildTrainingSet", "Materialise"
MARGIN_S = 0.05  # to answer in time after a wait
LONGEST_WAIT_S = 60.0


class FeaturesHandler(FeaturesServiceServicer):
    """Answers for definitions, training sets and online values."""

    def __init__(
        self,
        database: Database,
        definitions: Definitions,
        operations: Operations,
        training_sets: TrainingSets,
        materialising: Materialising,
        reading: Reading,
        snapshots: Snapshots,
        clock: Clock,
    ) -> None:
        self._database = database
        self._definitions = definitions
        self._operations = operations
        self._training_sets = training_sets
        self._materialising = materialising
        self._reading = reading
        self._snapshots = snapshots
        self._clock = clock
        operations.register(BUILD, self.build)
        operations.register(MATERIALISE, self.materialise)

    async def ApplyFeatureView(
        self, request: pb.ApplyFeatureViewRequest, context: Context
    ) -> FeatureView:
        asked = request.feature_view
        ids = parse(VIEW, asked.name, field="feature_view.name")
        row, view = await self._definitions.apply_view(
            ids["project"],
            ids["view"],
            messages.document_of(asked.document),
            validate_only=request.validate_only,
        )
        return messages.view_of(ids["project"], row, view)

    async def GetFeatureView(
        self, request: pb.GetFeatureViewRequest, context: Context
    ) -> FeatureView:
        ids = parse(VIEW, request.name, field="name")
        async with self._database.read() as transaction:
            row = await views.get(transaction, **ids)
        return messages.view_of(ids["project"], row, read_view(row.document))

    async def ListFeatureViews(
        self, request: pb.ListFeatureViewsRequest, context: Context
    ) -> pb.ListFeatureViewsResponse:
        project, page = project_of(request.parent), page_of(request, str)
        async with self._database.read() as transaction:
            rows = await views.page(transaction, project, page)
        shown, token = cut(rows, page, lambda row: row.view)
        found = [messages.view_of(project, row, read_view(row.document)) for row in shown]
        return pb.ListFeatureViewsResponse(feature_views=found, next_page_token=token)

    async def ApplyFeatureSet(
        self, request: pb.ApplyFeatureSetRequest, context: Context
    ) -> FeatureSet:
        asked = request.feature_set
        ids = parse(SET, asked.name, field="feature_set.name")
        row, plan = await self._definitions.apply_set(
            ids["project"],
            ids["feature_set"],
            messages.document_of(asked.document),
            validate_only=request.validate_only,
        )
        return messages.set_of(ids["project"], row, plan)

    async def GetFeatureSet(self, request: pb.GetFeatureSetRequest, context: Context) -> FeatureSet:
        ids = parse(SET, request.name, field="name")
        async with self._database.read() as transaction:
            row = await sets.get(transaction, **ids, version=request.version)
            resolved = await resolve(transaction, row)
        return messages.set_of(ids["project"], row, resolved.plan)

    async def ListFeatureSets(
        self, request: pb.ListFeatureSetsRequest, context: Context
    ) -> pb.ListFeatureSetsResponse:
        project, page = project_of(request.parent), page_of(request, str)
        async with self._database.read() as transaction:
            rows = await sets.page(transaction, project, page)
            shown, token = cut(rows, page, lambda row: row.feature_set)
            found = [
                messages.set_of(project, row, (await resolve(transaction, row)).plan)
                for row in shown
            ]
        return pb.ListFeatureSetsResponse(feature_sets=found, next_page_token=token)

    async def BuildTrainingSet(
        self, request: pb.BuildTrainingSetRequest, context: Context
    ) -> Operation:
        project_of(request.parent)
        order = await self._order(request)
        order.spine.check(order.resolved.plan)
        return await self._start(BUILD, request)

    async def build(
        self, operation: OperationContext, request: pb.BuildTrainingSetRequest
    ) -> TrainingSet:
        """Carry out a build that was started."""

        async def progress(stage: str, rows: int) -> None:
            await operation.progress(pb.BuildMetadata(rows=rows, stage=stage))

        return await self._training_sets.build(await self._order(request), progress)

    async def _order(self, request: pb.BuildTrainingSetRequest) -> Order:
        ids = parse(SET, request.feature_set, field="feature_set")
        source = parse(SOURCE, request.spine.source, field="spine.source")["source"]
        return Order(
            resolved=await self._definitions.resolved(ids["project"], ids["feature_set"]),
            spine=messages.spine_of(request.spine, source),
            bounds=messages.bounds_of(request),
            snapshots=dict(request.snapshots),
        )

    async def GetTrainingSet(
        self, request: pb.GetTrainingSetRequest, context: Context
    ) -> TrainingSet:
        ids = parse(TRAINING_SET, request.name, field="name")
        async with self._database.read() as transaction:
            row = await trainings.get(transaction, **ids)
        return TrainingSet.FromString(row.body)

    async def ListTrainingSets(
        self, request: pb.ListTrainingSetsRequest, context: Context
    ) -> pb.ListTrainingSetsResponse:
        project, page = project_of(request.parent), page_of(request, int)
        async with self._database.read() as transaction:
            rows = await trainings.page(transaction, project, page)
        shown, token = cut(rows, page, lambda row: row.position)
        found = [TrainingSet.FromString(row.body) for row in shown]
        return pb.ListTrainingSetsResponse(training_sets=found, next_page_token=token)

    async def ReadTrainingSet(
        self, request: pb.ReadTrainingSetRequest, context: Context
    ) -> AsyncIterator[pb.ReadTrainingSetResponse]:
        ids = parse(TRAINING_SET, request.name, field="name")
        async with self._database.read() as transaction:
            row = await trainings.get(transaction, **ids)
        start_us = to_us(request.start_time) if request.HasField("start_time") else None
        end_us = to_us(request.end_time) if request.HasField("end_time") else None
        async for chunk in self._training_sets.chunks(row.digest, start_us, end_us):
            yield pb.ReadTrainingSetResponse(arrow_ipc=chunk)

    async def Materialise(self, request: pb.MaterialiseRequest, context: Context) -> Operation:
        ids = parse(SET, request.feature_set, field="feature_set")
        await self._definitions.resolved(ids["project"], ids["feature_set"])
        return await self._start(MATERIALISE, request)

    async def materialise(
        self, operation: OperationContext, request: pb.MaterialiseRequest
    ) -> pb.MaterialiseResponse:
        """Carry out a load that was started."""

        async def progress(stage: str, rows: int) -> None:
            await operation.progress(pb.BuildMetadata(rows=rows, stage=stage))

        ids = parse(SET, request.feature_set, field="feature_set")
        resolved = await self._definitions.resolved(ids["project"], ids["feature_set"])
        until_us = to_us(request.known_until) if request.HasField("known_until") else None
        done = await self._materialising.run(resolved, until_us, progress)
        return pb.MaterialiseResponse(
            events=done.events,
            entities=done.entities,
            watermark=None if done.watermark_us is None else from_us(done.watermark_us),
            snapshots=done.snapshots,
        )

    async def GetOnlineFeatures(
        self, request: pb.GetOnlineFeaturesRequest, context: Context
    ) -> pb.GetOnlineFeaturesResponse:
        ids = parse(SET, request.feature_set, field="feature_set")
        resolved = await self._definitions.resolved(
            ids["project"], ids["feature_set"], request.version
        )
        question = messages.question_of(request, resolved, self._clock.now_us())
        min_us = None
        if request.HasField("min_watermark"):
            min_us = to_us(request.min_watermark, "min_watermark")
        wait_s = min(current_call().remaining_s(), LONGEST_WAIT_S) - MARGIN_S
        answer = await self._reading.read(resolved, question, min_us, wait_s)
        return messages.answer_of(resolved, answer)

    async def CheckSkew(
        self, request: pb.CheckSkewRequest, context: Context
    ) -> pb.CheckSkewResponse:
        asked, started_s = request.request, self._clock.monotonic_s()
        ids = parse(SET, asked.feature_set, field="request.feature_set")
        resolved = await self._definitions.resolved(
            ids["project"], ids["feature_set"], asked.version
        )
        question = messages.question_of(asked, resolved, self._clock.now_us())
        answer = await self._reading.read(resolved, question, None, 0.0)
        skew = await skew_of(resolved, question, answer, self._snapshots)
        elapsed_s = self._clock.monotonic_s() - started_s
        return pb.CheckSkewResponse(
            compared=skew.compared,
            different=skew.different,
            features=skew.features,
            snapshots=skew.snapshots,
            elapsed=duration_from_us(int(elapsed_s * 1_000_000)),
        )

    async def _start(self, method: str, request: Message) -> Operation:
        async with self._database.transaction() as transaction:
            return await self._operations.start(
                transaction, method=method, request=request, metadata=pb.BuildMetadata()
            )
