"""Far more models on one replica than its memory holds: each ready, each answers its own."""

from __future__ import annotations

import asyncio
import json
import urllib.request

import numpy as np
import pytest
from inference import grpc_service_pb2 as v2
from volary.gateway.v1 import replica_pb2
from volary_cli.launcher.engines import free_port
from volary_inference.lifecycle.residence import COPIES, SESSION_BYTES
from volary_kit.testing import eventually

from . import graphs
from .peers import Peers
from .replica import Replica, raw_output, raw_request

MODELS, ROOM = 200, 20
FIRST_CALL_S = 5.0  # its deadline: a bound that a busy machine keeps, not a measurement
ROW = [[0.0, 0.0, 0.0]]


@pytest.fixture(scope="module")
def engine() -> str:
    return "python"  # what may be forgotten is the Python engine's, see the README


def bias_of(model: int) -> float:
    return model / MODELS * 4 - 2


def graph_of(model: int) -> bytes:
    return graphs.sigmoid_sum(bias=bias_of(model))


def budget() -> str:
    return str(ROOM * (SESSION_BYTES + COPIES * len(graph_of(0))))


def gauges(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        rows = [row.rpartition(" ") for row in reply.read().decode().splitlines()]
    return {name: float(value) for name, _, value in rows if name.startswith("volary_graph")}


def want_all(peers: Peers) -> None:
    rows = [
        peers.registry.add(1, graph_of(i), model=f"m{i}", production=True) for i in range(MODELS)
    ]
    peers.gateway.want(*rows)


async def ask(stub: object, model: int) -> float:
    request = raw_request(ROW, model=f"m{model}")
    reply: v2.ModelInferResponse = await stub.ModelInfer(request, timeout=FIRST_CALL_S)  # pyright: ignore[reportAttributeAccessIssue]
    return raw_output(reply)[0]


async def test_two_hundred_models_on_room_for_twenty(replica: Replica, peers: Peers) -> None:
    want_all(peers)
    metrics = free_port()
    settings = {
        "VOLARY_INFERENCE_MEMORY_BUDGET_BYTES": budget(),
        "VOLARY_INFERENCE_PIN_PRODUCTION": "false",
        "VOLARY_INFERENCE_METRICS_PORT": str(metrics),
    }
    replica.start(**settings)
    await replica.ready()

    async def all_are_ready() -> bool:
        rows = peers.gateway.reports[-1].versions if peers.gateway.reports else []
        states = [row.state for row in rows]
        return states == [replica_pb2.VERSION_STATE_READY] * MODELS

    await eventually(all_are_ready, within_s=60, what="every model ready")
    seen = await asyncio.to_thread(gauges, metrics)
    assert seen['volary_graphs{place="memory"}'] <= ROOM
    assert seen['volary_graphs{place="memory"}'] + seen['volary_graphs{place="disk"}'] == MODELS
    stub = replica.v2()
    order = np.random.default_rng(7).permutation(MODELS).tolist()
    found = {model: await ask(stub, model) for model in order}
    expected = [1 / (1 + np.exp(-bias_of(i))) for i in range(MODELS)]
    assert [found[i] for i in range(MODELS)] == pytest.approx(expected, abs=1e-6)
    seen = await asyncio.to_thread(gauges, metrics)
    assert seen["volary_graph_reads_total"] >= MODELS - ROOM
    assert seen['volary_graphs{place="memory"}'] <= ROOM
    assert seen["volary_graphs_held_bytes"] <= float(budget())
    # together: whoever was forgotten meanwhile comes back for its caller
    again = await asyncio.gather(*(ask(stub, model) for model in order[: 3 * ROOM]))
    assert again == [found[model] for model in order[: 3 * ROOM]]
    verdicts = list((replica.data_dir / "verdicts").glob("*.json"))
    assert len(verdicts) == MODELS
    assert "crashes" in json.loads(verdicts[0].read_text())


async def test_what_is_unused_is_forgotten_stays_ready_and_comes_back(
    replica: Replica, peers: Peers
) -> None:
    peers.gateway.want(
        peers.registry.add(1, graphs.sigmoid_sum(), model="used", production=True),
        peers.registry.add(1, graphs.sigmoid_sum(bias=1), model="idle"),
    )
    metrics = free_port()
    replica.start(VOLARY_INFERENCE_IDLE_FORGET_S="0.2", VOLARY_INFERENCE_METRICS_PORT=str(metrics))
    await replica.ready()

    async def is_forgotten() -> bool:
        seen = await asyncio.to_thread(gauges, metrics)
        return seen['volary_graphs{place="disk"}'] == 1

    await eventually(is_forgotten, what="the idle version forgotten, production pinned")
    stub = replica.v2()
    ready = await stub.ModelReady(v2.ModelReadyRequest(name="idle", version="1"))
    assert ready.ready
    request = raw_request(ROW, model="idle", version="1")
    reply = await stub.ModelInfer(request, timeout=FIRST_CALL_S)
    assert raw_output(reply) == pytest.approx([1 / (1 + np.exp(-1.0))], abs=1e-6)
    await eventually(is_forgotten, what="it forgotten again")
