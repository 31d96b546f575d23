"""Features and ingest as processes of their own, on real engines, through the public client."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from redis.asyncio import Redis
from volary.features.v1 import feature_pb2
from volary.features.v1 import features_service_pb2 as pb
from volary.features.v1.features_service_pb2_grpc import FeaturesServiceStub
from volary.ingest.v1 import ingest_service_pb2 as ingest_pb
from volary.values.v1.value_pb2 import Record, Value
from volary_cli.launcher.engines import free_port
from volary_client import AsyncClient
from volary_kit.documents import read_documents
from volary_kit.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from volary_kit.testing import eventually

from tests.contract.process import Keys

FLIGHTS = Path(__file__).parents[3] / "examples" / "flights"
UNTIL = datetime(2013, 1, 15, tzinfo=UTC)
SOURCES = ("airports", "planes", "weather", "landings")
SPINE = {
    "subject_column": "flight_id",
    "time_column": "event_time",
    "entity_columns": {
        "carrier": "carrier",
        "origin": "origin",
        "tailnum": "tailnum",
        "dest": "dest",
    },
    "request_columns": {
        "distance": "distance",
        "sched_dep_time": "sched_dep_time",
        "sched_arr_time": "sched_arr_time",
    },
    "label_column": "arr_delay",
    "label_threshold": 15,
}


def stamp(instant: datetime) -> Timestamp:
    found = Timestamp()
    found.FromDatetime(instant)
    return found


@dataclass
class Pair:
    """A client of features and one of ingest."""

    features: AsyncClient
    ingest: AsyncClient

    def name(self, *parts: str) -> str:
        return self.features.name(*parts)

    async def apply(self) -> feature_pb2.FeatureSet:
        *views, feature_set = [each.data for each in read_documents(FLIGHTS / "features.yaml")]
        for document in views:
            request = pb.ApplyFeatureViewRequest()
            request.feature_view.name = self.name("featureViews", document["name"])
            request.feature_view.document.update(document)
            await self.features.features.ApplyFeatureView(request)
        request = pb.ApplyFeatureSetRequest()
        request.feature_set.name = self.name("featureSets", feature_set["name"])
        request.feature_set.document.update(feature_set)
        return await self.features.features.ApplyFeatureSet(request)

    async def pull(self, source: str, until: datetime) -> ingest_pb.PullResponse:
        request = ingest_pb.StartPullRequest(
            source=self.name("sources", source), until=stamp(until), request_id=str(uuid.uuid4())
        )
        operation = await self.ingest.ingest.StartPull(request)
        return await self.ingest.wait(operation, ingest_pb.PullResponse)

    async def push(self, source: str, rows: list[dict[str, str]], watermark: datetime) -> None:
        records = [
            ingest_pb.PushedRecord(
                record=Record(fields={k: Value(string_value=v) for k, v in row.items()})
            )
            for row in rows
        ]
        await self.ingest.ingest.PushRecords(
            ingest_pb.PushRecordsRequest(
                source=self.name("sources", source), records=records, watermark=stamp(watermark)
            )
        )

    async def live_through(self, until: datetime) -> None:
        """Push what becomes known in the world from `UNTIL` on, in steps, as the replay does."""
        for tick in replay().ticks(UNTIL, until, timedelta(hours=1)):
            for source in ("weather", "landings"):
                await self.push(source, tick.records.get(source, []), tick.until)

    def question(self, *asked: datetime, **more: Any) -> pb.GetOnlineFeaturesRequest:
        rows = len(asked)
        keys = {"carrier": "UA", "origin": "EWR", "tailnum": "N14228", "dest": "IAH"}
        fields = {"distance": 1400.0, "sched_dep_time": 700.0, "sched_arr_time": 1000.0}
        return pb.GetOnlineFeaturesRequest(
            feature_set=self.name("featureSets", "flights-delay"),
            entities={name: pb.EntityKeys(keys=[key] * rows) for name, key in keys.items()},
            request_fields={
                name: pb.FieldValues(values=[Value(number_value=value)] * rows)
                for name, value in fields.items()
            },
            event_times=[stamp(each) for each in asked],
            **more,
        )


def replay() -> Any:
    spec = importlib.util.spec_from_file_location("flights_replay", FLIGHTS / "replay.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def environment(name: str, keys: Keys, **settings: Any) -> dict[str, str]:
    common = {"jwks_file": keys.jwks, "service_key_file": keys.file(name)}
    prefix = f"VOLARY_{name.upper()}_"
    return os.environ | {prefix + k.upper(): str(v) for k, v in (common | settings).items()}


async def started(name: str, environ: dict[str, str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(sys.executable, "-m", f"volary_{name}", env=environ)


@pytest.fixture(scope="module")
async def pair(
    databases: Any,
    redis_url: str,
    temporal_address: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Pair]:
    folder = tmp_path_factory.mktemp("features")
    async with Redis.from_url(redis_url) as redis:
        await redis.flushall()  # other tests have views of the same names
    keys, ports = Keys(folder / "keys"), {"ingest": free_port(), "features": free_port()}
    processes = {}
    for name, port in ports.items():
        peer = {"ingest_address": f"127.0.0.1:{ports['ingest']}"} if name == "features" else {}
        settings = environment(
            name,
            keys,
            port=port,
            database_url=await databases.fresh(name),
            redis_url=redis_url,
            temporal_address=temporal_address,
            data_dir=folder / name,
            **peer,
        )
        processes[name] = await started(name, settings)
    key = keys.api_key("operator")
    try:
        async with (
            AsyncClient(f"127.0.0.1:{ports['features']}", key) as features,
            AsyncClient(f"127.0.0.1:{ports['ingest']}", key) as ingest,
        ):
            pair = Pair(features, ingest)
            await eventually(lambda: answers(pair), within_s=90, what="features and ingest")
            await declared_and_pulled(pair)
            yield pair
    finally:
        for process in processes.values():
            process.send_signal(signal.SIGTERM)
            await process.wait()


async def answers(pair: Pair) -> bool:
    parent = pair.features.name()
    try:
        await pair.features.features.ListFeatureViews(
            pb.ListFeatureViewsRequest(parent=parent), timeout=2
        )
        await pair.ingest.ingest.ListSources(ingest_pb.ListSourcesRequest(parent=parent), timeout=2)
    except (Unavailable, DeadlineExceeded):
        return False
    return True


async def declared_and_pulled(pair: Pair) -> None:
    for source in SOURCES:
        (document,) = read_documents(FLIGHTS / f"source-{source}.yaml")
        request = ingest_pb.ApplySourceRequest()
        request.source.name = pair.name("sources", source)
        request.source.document.update(document.data)
        await pair.ingest.ingest.ApplySource(request)
    for source in SOURCES:
        await pair.pull(source, UNTIL)
    await pair.apply()


async def materialised(pair: Pair) -> pb.MaterialiseResponse:
    request = pb.MaterialiseRequest(
        feature_set=pair.name("featureSets", "flights-delay"),
        known_until=stamp(UNTIL),
        request_id=str(uuid.uuid4()),
    )
    operation = await pair.features.features.Materialise(request)
    return await pair.features.wait(operation, pb.MaterialiseResponse)


async def test_the_same_documents_again_change_nothing(pair: Pair) -> None:
    first, again = await pair.apply(), await pair.apply()
    assert (first.version, first.schema_hash) == (again.version, again.schema_hash)
    assert first.entities == ["carrier", "dest", "origin", "tailnum"]
    assert first.request_fields == ["distance", "sched_arr_time", "sched_dep_time"]
    views = await pair.features.features.ListFeatureViews(
        pb.ListFeatureViewsRequest(parent=pair.name(), page_size=3)
    )
    assert [view.version for view in views.feature_views] == [1, 1, 1]
    assert views.next_page_token


async def test_a_training_set_is_built_once_and_read_in_chunks(pair: Pair) -> None:
    request = pb.BuildTrainingSetRequest(
        parent=pair.name(),
        feature_set=pair.name("featureSets", "flights-delay"),
        spine=pb.Spine(source=pair.name("sources", "landings"), **SPINE),
        start_time=stamp(UNTIL - timedelta(days=14)),
        end_time=stamp(UNTIL),
        known_until=stamp(UNTIL),
    )
    built = []
    for _ in range(2):
        request.request_id = str(uuid.uuid4())
        operation = await pair.features.features.BuildTrainingSet(request)
        built.append(await pair.features.wait(operation, feature_pb2.TrainingSet))
    first, again = built
    assert first == again
    assert first.rows > 10_000
    assert 0.1 < first.positive_share < 0.4
    table = await read(pair, first.name)
    assert table.num_rows == first.rows
    assert table.column_names[:3] == ["subject", "event_time", "known_at"]
    assert table.column_names[-1] == "label"
    assert {each.feature for each in first.distributions} == set(table.column_names[3:])
    for each in first.distributions:
        assert sum(each.counts) == first.rows
        assert len(each.counts) == len(each.edges) + 1


async def read(pair: Pair, name: str) -> pa.Table:
    pieces = io.BytesIO()
    async for piece in pair.features.features.ReadTrainingSet(pb.ReadTrainingSetRequest(name=name)):
        assert len(piece.arrow_ipc) <= 1 << 20
        pieces.write(piece.arrow_ipc)
    return pa.ipc.open_stream(pieces.getvalue()).read_all()


async def test_what_is_pushed_is_served_at_its_watermark_as_the_join_has_it(pair: Pair) -> None:
    loaded = await materialised(pair)
    assert loaded.events > 10_000
    before = await pair.features.features.GetOnlineFeatures(pair.question(UNTIL))
    assert before.watermark == stamp(UNTIL)

    asked = UNTIL + timedelta(hours=3)
    await pair.live_through(asked)
    question = pair.question(asked, asked - timedelta(minutes=30), min_watermark=stamp(asked))
    after = await pair.features.features.GetOnlineFeatures(question, timeout=20)
    assert after.watermark == stamp(asked)
    assert after.values != before.values

    for source in ("landings", "weather"):
        pulled = await pair.pull(source, asked)  # what was pushed is in the snapshot, once
        assert pulled.batch.accepted_rows == 0
    skew = await pair.features.features.CheckSkew(pb.CheckSkewRequest(request=question), timeout=30)
    assert (skew.compared, skew.different, list(skew.features)) == (2 * 37, 0, [])


async def test_a_watermark_that_does_not_come_is_a_failed_precondition(pair: Pair) -> None:
    await materialised(pair)
    far = UNTIL + timedelta(days=30)
    with pytest.raises(FailedPrecondition) as caught:
        await pair.features.features.GetOnlineFeatures(
            pair.question(far, min_watermark=stamp(far)), timeout=1
        )
    assert caught.value.reason == "WATERMARK_NOT_REACHED"


async def test_bad_questions_are_told_what_is_wrong(pair: Pair) -> None:
    service: FeaturesServiceStub = pair.features.features
    unequal = pair.question(UNTIL, UNTIL)
    del unequal.entities["dest"].keys[1:]
    lacking = pair.question(UNTIL)
    del lacking.entities["carrier"]
    text = pair.question(UNTIL)
    text.request_fields["distance"].values[0].string_value = "far"
    for request, reason in (
        (unequal, "ROWS_UNEQUAL"),
        (lacking, "ENTITY_MISSING"),
        (text, "REQUEST_FIELD_IS_NO_NUMBER"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            await service.GetOnlineFeatures(request)
        assert caught.value.reason == reason
    unknown = pair.question(UNTIL)
    unknown.feature_set = pair.name("featureSets", "nothing")
    with pytest.raises(NotFound):
        await service.GetOnlineFeatures(unknown)


async def test_a_broken_document_is_refused_by_its_place(pair: Pair) -> None:
    request = pb.ApplyFeatureViewRequest()
    request.feature_view.name = pair.name("featureViews", "broken")
    request.feature_view.document.update(
        {
            "kind": "FeatureView",
            "name": "broken",
            "owner": "somebody",
            "on_call": "somebody",
            "spec": {
                "kind": "request",
                "fields": ["x"],
                "features": [{"name": "bad", "expression": "__import__('os').getpid()"}],
            },
        }
    )
    with pytest.raises(InvalidArgument) as caught:
        await pair.features.features.ApplyFeatureView(request)
    assert caught.value.reason == "DOCUMENT_INVALID"
    assert "expression" in caught.value.message


async def test_a_lost_online_state_comes_back_with_the_same_answers(
    pair: Pair, redis_url: str
) -> None:
    await materialised(pair)
    asked = UNTIL + timedelta(hours=3)
    await pair.live_through(asked)
    question = pair.question(asked, min_watermark=stamp(asked))
    before = await pair.features.features.GetOnlineFeatures(question, timeout=20)
    async with Redis.from_url(redis_url) as redis:
        await redis.flushall()
    with pytest.raises(Unavailable):  # as its views declare: nothing is made up
        await pair.features.features.GetOnlineFeatures(pair.question(asked))

    async def is_back() -> bool:
        try:
            found = await pair.features.features.GetOnlineFeatures(pair.question(asked), timeout=5)
        except Unavailable:
            return False
        return found == before

    await eventually(is_back, within_s=60, what="the repair")
