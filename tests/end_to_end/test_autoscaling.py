"""Many times the load brings a replica, without it one leaves, and no call fails meanwhile.

A whole mesh, whose launcher starts and stops the replicas; calls go through Envoy.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from inference import grpc_service_pb2 as v2
from volary_client import AsyncClient
from volary_kit.testing import eventually

from tests.chaos.mesh import WIDTH, registered
from tests.end_to_end.conftest import REPLICAS, WholeMesh
from tests.unit.gateway.rig import Load
from tests.unit.inference.graphs import slow_sum

MODEL = "slow"
NEWCOMER = f"inference-{REPLICAS}"
CALLERS = 8  # four a replica, of which three wait at any time
WITHIN_S = 120.0
TRAINING = {
    "kind": "Training",
    "name": MODEL,
    "owner": "scaling-team",
    "on_call": "scaling-on-call",
    "spec": {"model": MODEL, "rollout": {"steps": [{"weight": "50%"}], "bake": "500ms"}},
}

pytestmark = pytest.mark.timeout(600)


async def test_a_replica_joins_as_calls_wait_and_leaves_as_they_do_not(
    whole_mesh: WholeMesh, client: AsyncClient, tmp_path: Path
) -> None:
    await registered(client, MODEL, graph=slow_sum)
    (tmp_path / "training.yaml").write_text(yaml.safe_dump(TRAINING))
    first = await whole_mesh.rolled_out(MODEL, 1, tmp_path)
    assert first["state"] == "PROMOTED", first
    request = v2.ModelInferRequest(model_name=MODEL)
    request.inputs.add(name="features", datatype="FP32", shape=[1, WIDTH])
    request.raw_input_contents.append(np.ones((1, WIDTH), np.float32).tobytes())

    async def infer() -> None:
        await client.inference.ModelInfer(request, timeout=30)

    async def has_joined() -> bool:
        return whole_mesh.health(NEWCOMER) == "ready"

    async def has_left() -> bool:
        return not whole_mesh.health(NEWCOMER)

    async with Load(infer, callers=1) as load:  # a failed call fails the block
        async with Load(infer, callers=CALLERS):
            await eventually(has_joined, within_s=WITHIN_S, what="a replica more")
        await eventually(has_left, within_s=WITHIN_S, what="a replica less")
        before = load.calls

        async def goes_on() -> bool:
            return load.calls > before + 5

        await eventually(goes_on, within_s=WITHIN_S, what="calls after it has left")
