"""Versions compared by what users do, on a whole mesh: an experiment.

Calls go through Envoy, outcomes to monitor by `RecordOutcomes`, commands through `volary`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from volary.gateway.v1.traffic_service_pb2 import GetTrafficRequest
from volary_client import AsyncClient

from tests.chaos.mesh import registered
from tests.end_to_end.conftest import WholeMesh
from tests.end_to_end.shoppers import HEADER, METRIC, USERS, Shoppers

MODEL = "shop"
DULL, BOLD = 1, 2
SELDOM, OFTEN = 0.1, 0.9
WITHIN_S = 150.0
OWNED = {"owner": "shop-team", "on_call": "shop-on-call"}
EXPERIMENT = {
    "kind": "Experiment",
    "name": "bolder",
    "spec": {
        "model": MODEL,
        "arms": [
            {"name": "today", "version": DULL, "share": "50%"},
            {"name": "bold", "version": BOLD, "share": "50%"},
        ],
        "control": "today",
        "metric": {"name": METRIC, "range": [0, 1], "expected": 0.5},
        "sticky_by": HEADER,
        "min_effect": 0.1,
        "min_duration": "2s",
        "max_duration": "120s",
        "poll": "400ms",
    },
}
ROLLOUT = {
    "steps": [{"weight": "50%", "min_duration": "1s", "min_requests": 50}],
    "bake": "500ms",
    "poll": "300ms",
    "max_extensions": 400,
    "guards": [
        {"kind": "error_rate", "ceiling": 0.2},
    ],
}
TRAINING = {"kind": "Training", "name": MODEL, "spec": {"model": MODEL, "rollout": ROLLOUT}}

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
async def declared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    for document in (EXPERIMENT, TRAINING):
        (folder / f"{document['kind']}.yaml".lower()).write_text(yaml.safe_dump(OWNED | document))
    return folder


@pytest.fixture(scope="module")
async def client(whole_mesh: WholeMesh) -> AsyncIterator[AsyncClient]:
    status = await whole_mesh.told("status")
    async with AsyncClient(status["gateway"], status["api_key"], timeout_s=30) as client:
        yield client


@pytest.fixture(scope="module")
async def shoppers(
    whole_mesh: WholeMesh, client: AsyncClient, declared: Path
) -> AsyncIterator[Shoppers]:
    """Users of a model whose first version is in production."""
    await registered(client, MODEL)
    first = await rolled_out(whole_mesh, declared, DULL)
    assert first["state"] == "PROMOTED", first
    found = Shoppers(client, MODEL, {DULL: SELDOM, BOLD: OFTEN})
    async with found.coming():
        yield found


async def rolled_out(mesh: WholeMesh, declared: Path, version: int) -> dict[str, Any]:
    """Roll a version out by the command; return how it ended."""
    await mesh.told("rollout", "start", MODEL, "-c", str(version), "-p", str(declared))
    done = await mesh.volary("rollout", "watch", MODEL, "--json", timeout_s=WITHIN_S)
    assert done.returncode in (0, 5), done.stderr[-4_000:]
    return json.loads(done.stdout)


async def answering(client: AsyncClient) -> list[tuple[int, int]]:
    name = f"projects/default/models/{MODEL}/traffic"
    traffic = await client.traffic.GetTraffic(GetTrafficRequest(name=name))
    return [(each.version, each.weight) for each in traffic.weights]


async def test_an_experiment_finds_what_users_like_better_and_gives_the_traffic_back(
    whole_mesh: WholeMesh, client: AsyncClient, shoppers: Shoppers, declared: Path
) -> None:
    begun = await whole_mesh.told("experiment", "start", str(declared / "experiment.yaml"))
    assert begun["state"] in ("PENDING", "VALIDATING", "LOADING", "STAGING", "RUNNING")
    refused = await whole_mesh.volary(
        "rollout", "start", MODEL, "-c", str(BOLD), "-p", str(declared)
    )
    assert (refused.returncode, "EXPERIMENT_IN_PROGRESS" in refused.stderr) == (5, True)
    async with asyncio.timeout(WITHIN_S):
        while True:
            found = await whole_mesh.told("experiment", "status", MODEL)
            if found["state"] in ("CONCLUDED", "STOPPED", "FAILED"):
                break
    look = found["look"]
    assert (found["state"], look["verdict"], look["winner"]) == ("CONCLUDED", "WINNER", "bold")
    assert 50 < sum(arm["units"] for arm in look["arms"]) <= USERS
    assert all(len(versions) == 1 for versions in shoppers.met.values())
    assert await answering(client) == [(DULL, 10_000)]
    listed = await whole_mesh.told("experiment", "list")
    assert [row["model"] for row in listed] == [MODEL]
    report = await whole_mesh.told("experiment", "report", found["experiment"])
    assert report["again"]["agrees"]
    late = await whole_mesh.volary("experiment", "stop", MODEL)
    assert late.returncode == 5, late.stderr
