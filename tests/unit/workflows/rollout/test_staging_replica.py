"""Staging's calls against a real replica: what is sound passes, what is not is named."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from volary.registry.v1 import model_pb2
from volary_workflows.rollout.staging import Check, Golden
from volary_workflows.rollout.tasks import Subject

from tests.unit.inference import graphs
from tests.unit.inference.peers import Keys, Peers
from tests.unit.inference.replica import Replica

GOLDEN = {"inputs": {"features": [[0, 0, 0]]}, "outputs": {"probability": [[0.5]]}}
OTHER = {"inputs": {"features": [[0, 0, 0]]}, "outputs": {"probability": [[0.731059]]}}
RULE = {"features": [f"view.f{i}" for i in range(3)], "fallback": {"rule": "0.5"}}


@pytest.fixture(scope="module")
async def peers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Peers]:
    peers = Peers(Keys(tmp_path_factory.mktemp("keys")))
    await peers.start()
    yield peers
    await peers.stop()


@pytest.fixture(scope="module")
async def replica(
    peers: Peers, tmp_path_factory: pytest.TempPathFactory, redis_url: str
) -> AsyncIterator[Replica]:
    """A replica that holds version 1, and version 2 with a fallback of its own."""
    peers.gateway.want(
        peers.registry.add(1, graphs.sigmoid_sum(), production=True),
        peers.registry.add(
            2,
            graphs.sigmoid_sum(bias=1.0),
            serving=json.dumps(RULE).encode(),
            feature_set="set@3",
            schema_hash="hash-3",
        ),
    )
    replica = Replica(tmp_path_factory.mktemp("replica"), peers.keys, peers, redis_url)
    replica.start()
    await replica.ready()
    yield replica
    replica.close()


async def checked(peers: Peers, replica: Replica, version: int, golden, *, columns: int = 3):
    digest = peers.registry.versions[f"projects/default/models/m/versions/{version}"].digest
    registered = model_pb2.ModelVersion(
        digest=digest,
        inputs=[model_pb2.TensorSpec(name="features", datatype="FP32", shape=[-1, columns])],
        outputs=[model_pb2.TensorSpec(name="probability", datatype="FP32", shape=[-1, 1])],
    )
    check = Check(
        replica.channel(peers.keys.service_token()),
        Subject("default", "m", version, digest),
        registered,
        Golden(**golden) if golden else None,
    )
    await check.run()
    return check.problems


@pytest.mark.parametrize(("version", "golden"), [(1, GOLDEN), (1, None), (2, OTHER), (2, None)])
async def test_a_sound_version_passes(peers, replica, version, golden):
    assert await checked(peers, replica, version, golden) == []


async def test_golden_rows_that_come_out_differently_are_found(peers, replica):
    problems = await checked(peers, replica, 1, OTHER)
    assert problems == ["golden rows: output probability comes out differently"]


async def test_another_signature_than_the_registered_one_is_found(peers, replica):
    problems = await checked(peers, replica, 1, None, columns=4)
    assert problems[0].startswith("inputs: ")
    assert any(text.startswith("answers: ") for text in problems)


async def test_a_version_that_is_not_there_is_found(peers, replica):
    peers.registry.versions["projects/default/models/m/versions/9"] = model_pb2.ModelVersion()
    assert await checked(peers, replica, 9, None)
