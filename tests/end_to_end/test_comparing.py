"""Versions compared by what users do, on a whole mesh: by an experiment, and by a rollout's guard.

Calls go through Envoy, outcomes to monitor by `RecordOutcomes`, commands through `volary`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml
from volary.gateway.v1.traffic_service_pb2 import GetTrafficRequest
from volary.monitor.v1.monitor_pb2 import ACTION_STATE_DELIVERED
from volary.monitor.v1.monitor_service_pb2 import ApplyMonitorPolicyRequest, ListActionsRequest
from volary_client import AsyncClient
from volary_kit.testing import eventually
from volary_kit.webhooks import SIGNATURE, is_signed

from tests.chaos.mesh import registered
from tests.end_to_end.conftest import SECRET, WholeMesh
from tests.end_to_end.shoppers import BETA, HEADER, METRIC, RING, USERS, Shoppers
from tests.unit.receiver import Receiver

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
        "segment": {"header": RING, "values": [BETA]},
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
        {"kind": "business", "metric": METRIC, "margin": 0.1, "min_effect": 0.1},
    ],
}
BANDS = [{"below": 0.5, "code": "LOW", "action": "call"}, {"code": "HIGH", "action": "go"}]
MONITOR = {
    "kind": "Monitor",
    "name": MODEL,
    "spec": {
        "model": MODEL,
        "truth": {"source": "visits", "subject_column": "id", "label_column": "bought"},
        "window": {"length": "1d"},
    },
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
async def shoppers(
    whole_mesh: WholeMesh, client: AsyncClient, declared: Path
) -> AsyncIterator[Shoppers]:
    """Users of a model whose first version is in production."""
    await registered(client, MODEL, json.dumps({"bands": BANDS}))
    first = await whole_mesh.rolled_out(MODEL, DULL, declared)
    assert first["state"] == "PROMOTED", first
    found = Shoppers(client, MODEL, {DULL: SELDOM, BOLD: OFTEN})
    async with found.coming():
        yield found


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
    assert 50 < sum(arm["units"] for arm in look["arms"]) <= USERS * 2 // 3
    assert shoppers.others == {DULL}
    assert len(shoppers.met) <= USERS * 2 // 3
    assert all(len(versions) == 1 for versions in shoppers.met.values())
    assert await answering(client) == [(DULL, 10_000)]
    listed = await whole_mesh.told("experiment", "list")
    assert [row["model"] for row in listed] == [MODEL]
    report = await whole_mesh.told("experiment", "report", found["experiment"])
    assert report["again"]["agrees"]
    late = await whole_mesh.volary("experiment", "stop", MODEL)
    assert late.returncode == 5, late.stderr


async def test_a_version_by_which_users_buy_less_goes_back_and_one_by_which_more_is_promoted(
    whole_mesh: WholeMesh, client: AsyncClient, shoppers: Shoppers, declared: Path
) -> None:
    shoppers.chances.update({DULL: OFTEN, BOLD: SELDOM})
    worse = await whole_mesh.rolled_out(MODEL, BOLD, declared)
    assert worse["state"] == "ROLLED_BACK", worse
    assert worse["reason"].startswith("CANDIDATE_WORSE")  # whether or not a record is on its way
    assert any(METRIC in reason for reason in worse["look"]["reasons"]), worse["look"]
    assert await answering(client) == [(DULL, 10_000)]
    shoppers.chances.update({DULL: SELDOM, BOLD: OFTEN})
    better = await whole_mesh.rolled_out(MODEL, BOLD, declared)
    assert (better["state"], better["baseline"]) == ("PROMOTED", DULL), better
    assert await answering(client) == [(BOLD, 10_000)]
    explained = await whole_mesh.volary("rollout", "explain", worse["rollout"])
    assert explained.returncode == 0, explained.stderr


async def test_what_a_decision_recommends_is_told_once_to_whom_the_policy_names(
    client: AsyncClient, shoppers: Shoppers, receiver: Receiver
) -> None:
    policy = OWNED | MONITOR
    rule = {"action": "call", "webhook": f"{receiver.origin}/calls"}
    policy |= {"spec": MONITOR["spec"] | {"actions": [rule]}}
    request = ApplyMonitorPolicyRequest()
    request.monitor_policy.name = f"projects/default/monitorPolicies/{MODEL}"
    request.monitor_policy.document.update(policy)
    await client.monitor.ApplyMonitorPolicy(request)
    reply = await client.inference.ModelInfer(shoppers.asking(-1.0), timeout=30)
    assert reply.parameters["volary_action"].string_param == "call"
    listing = ListActionsRequest(model=f"projects/default/models/{MODEL}")

    async def is_delivered() -> bool:
        found = (await client.monitor.ListActions(listing)).actions
        return [each.state for each in found] == [ACTION_STATE_DELIVERED]

    await eventually(is_delivered, within_s=WITHIN_S, what="the action's delivery")
    key = reply.parameters["volary_prediction_id"].string_param
    (post,) = receiver.posted  # though most visits of the shop recommend something
    assert (post.path, post.key, post.told["reason_codes"]) == ("/calls", key, ["LOW"])
    assert is_signed(SECRET, post.headers[SIGNATURE], post.body, time.time())
