"""Every replica of a model dead: the last prediction of the same question answers at the edge.

Gateway, inference, Envoy, Postgres and Redis are real; registry and features are played.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from inference import grpc_service_pb2 as v2
from inference import grpc_service_pb2_grpc as v2_grpc
from redis.asyncio import Redis
from volary.gateway.v1 import edge_pb2, edge_service_pb2, edge_service_pb2_grpc, replica_service_pb2
from volary.inference.v1 import prediction_service_pb2, prediction_service_pb2_grpc
from volary_kit.last_predictions import PREFIX
from volary_kit.testing import eventually

from tests.native import ENGINES, require
from tests.unit.gateway.mesh import Mesh, mesh
from tests.unit.inference import graphs
from tests.unit.inference.peers import Keys, Peers
from tests.unit.inference.replica import Replica, raw_output, raw_request, typed_request

ROW, OTHER = [[1.0, 0.25, -3.0]], [[0.5, 0.5, 0.5]]
CACHED = {"fallback": {"cache": {"max_age": "10m"}}}


@dataclass
class Story:
    """A model with two versions on one real replica, and a client at the edge."""

    running: Mesh
    replica: Replica
    digests: dict[int, str]

    def __post_init__(self) -> None:
        self.channel = self.running.edge()
        self.v2 = v2_grpc.GRPCInferenceServiceStub(self.channel)
        self.by_entity = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.key = self.running.api_key()

    async def infer(self, request: v2.ModelInferRequest) -> v2.ModelInferResponse:
        return await self.v2.ModelInfer(request, metadata=self.key, timeout=10)

    async def predict(self, plane: str) -> prediction_service_pb2.PredictResponse:
        request = prediction_service_pb2.PredictRequest(model="m", entity_keys={"plane": plane})
        return await self.by_entity.Predict(request, metadata=self.key, timeout=10)

    async def declare(self, cached_s: int) -> None:
        rule = edge_pb2.Fallback(
            name=f"{self.running.name}/fallback",
            tier=edge_pb2.FALLBACK_TIER_RULE,
            outputs=[edge_pb2.FallbackOutput(name="probability", row=[0.75])],
        )
        rule.cached_for.FromSeconds(cached_s)
        stub = edge_service_pb2_grpc.EdgeServiceStub(self.running.direct("test"))
        request = edge_service_pb2.SetFallbackRequest(fallback=rule)
        kept = await stub.SetFallback(request, metadata=self.running.as_service(), timeout=10)
        assert kept.cached_for.seconds == cached_s


@pytest.fixture(params=ENGINES)
async def story(
    tmp_path: Path, databases, redis: Redis, redis_url: str, request: pytest.FixtureRequest
) -> AsyncIterator[Story]:
    require(request.param)
    url = await databases.fresh("gateway")
    async with mesh(tmp_path, url, [], redis_url) as running:
        await asyncio.wait_for(running.direct("test").channel_ready(), 60)
        running.model = "m"
        peers = Peers(_keys(running))
        await peers.start()
        replica = Replica(tmp_path, peers.keys, peers, redis_url, request.param)
        replica.start(VOLARY_INFERENCE_GATEWAY_ADDRESS=f"127.0.0.1:{running.port}")
        try:
            digests = {number: _registered(peers, number) for number in (1, 2)}
            for number, digest in digests.items():
                await _load(running, number, digest)
            assert (await running.set(0, (1, 10_000))).in_effect
            yield Story(running, replica, digests)
        finally:
            replica.close()
            await peers.stop()
    await databases.drop(url)


def _keys(running: Mesh) -> Keys:
    """Return the keys of the mesh in the form that a replica and what it talks to are given."""
    folder = running.folder / "peers"
    folder.mkdir()
    keys = Keys(folder)
    keys.jwks, keys.service_key = running.folder / "jwks.json", folder / "inference.pem"
    running.keys["inference"].write(keys.service_key)
    return keys


def _registered(peers: Peers, number: int) -> str:
    return peers.registry.add(
        number,
        graphs.sigmoid_sum(bias=float(number)),
        serving=json.dumps(CACHED).encode(),
        feature_set="set@3",
        schema_hash="hash-3",
    ).digest


async def _load(running: Mesh, version: int, digest: str) -> None:
    name = f"{running.name}/versions/{version}"
    request = replica_service_pb2.LoadVersionRequest(name=name, digest=digest)
    await running.replicas.LoadVersion(request, metadata=running.as_service(), timeout=10)

    async def is_ready() -> bool:
        asked = replica_service_pb2.GetVersionReadinessRequest(name=name)
        found = await running.replicas.GetVersionReadiness(
            asked, metadata=running.as_service(), timeout=10
        )
        return found.ready_replicas == found.attached_replicas > 0

    await eventually(is_ready, within_s=60, what=f"version {version}")


async def test_last_prediction_answers_when_no_replica_does(story: Story, redis: Redis):
    await story.declare(cached_s=600)
    alive = await story.infer(raw_request(ROW))
    entity = await story.predict("N1")

    async def is_pinned() -> bool:
        """Version 2 has no traffic, so nothing has waited until Envoy found it healthy."""
        reply = await story.infer(raw_request(OTHER, version="2"))
        tier = reply.parameters["volary_tier"].string_param
        return (reply.model_version, tier) == ("2", "model")

    await eventually(is_pinned, within_s=30, what="an answer of version 2")
    await eventually(lambda: _kept(redis, 3), within_s=30, what="three predictions in Redis")
    story.replica.kill()

    found = await story.infer(raw_request(ROW))
    assert raw_output(found) == raw_output(alive)
    assert found.id == "call-1"
    assert (found.model_version, found.outputs[0].name) == ("1", "probability")
    told = found.parameters
    assert told["volary_tier"].string_param == "cache"
    assert told["volary_version"].int64_param == 1
    assert told["volary_digest"].string_param == story.digests[1]
    original = alive.parameters["volary_prediction_id"].string_param
    assert told["volary_prediction_id"].string_param == original
    assert 0 <= told["volary_age_us"].int64_param < 600_000_000

    # the same bits as typed contents are the same question, and are answered as it was asked
    typed = await story.infer(typed_request(ROW))
    assert list(typed.outputs[0].contents.fp32_contents) == raw_output(alive)
    again = await story.predict("N1")
    assert (again.score, again.provenance.tier) == (entity.score, "cache")
    assert (again.provenance.version, again.provenance.digest) == (1, story.digests[1])

    # nobody asked this before: the rule. Version 2 said something to OTHER, but has no traffic
    for unknown in (raw_request([[9.0, 9.0, 9.0]]), raw_request(OTHER)):
        ruled = await story.infer(unknown)
        assert ruled.parameters["volary_tier"].string_param == "rule"
        assert list(ruled.outputs[0].contents.fp32_contents) == [0.75]
    assert (await story.predict("N2")).provenance.tier == "rule"

    await until_counted(story, "cache", 3)


async def until_counted(story: Story, tier: str, number: int) -> None:
    """Wait until so many attempts are counted that this tier answered: errors of the version."""

    async def is_counted() -> bool:
        evidence = await story.running.evidence()
        outcomes = [o for v in evidence.variants for o in v.outcomes if o.tier == tier]
        assert all(outcome.error_event for outcome in outcomes)
        return sum(outcome.count for outcome in outcomes) == number

    await eventually(is_counted, within_s=30, what=f"{number} answers of tier {tier}")


async def _kept(redis: Redis, number: int) -> bool:
    keys = [key async for key in redis.scan_iter(f"{PREFIX}projects/default/models/m/*")]
    return len(keys) == number
