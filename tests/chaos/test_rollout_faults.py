"""A process is lost at each state of a rollout: it ends as it would have, or goes back.

Here each process is lost once and each state is seen once; `python -m bench.rollout.faults` loses
every process at every state, and docs/benchmarks/rollout-faults.md has what came of that.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.chaos.rollouts import STANDS, Rollouts, rollouts

PORT_BASE = 19_300
DIAGONAL = {
    "VALIDATING": "temporal",
    "LOADING": "inference",
    "SHADOW": "worker",
    "CANARY": "envoy",
    "PROMOTING": "gateway",
    "UNLOADING": "worker",
}

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rollouts]:
    async with rollouts(tmp_path_factory.mktemp("faults") / "mesh", PORT_BASE) as running:
        yield running


@pytest.mark.parametrize(("name", "lost"), DIAGONAL.items())
async def test_a_rollout_survives_the_loss_of_a_process(running: Rollouts, name: str, lost: str):
    stand = next(each for each in STANDS if each.name == name)
    outcome = await running.run(stand, lost)
    assert outcome.problems == []
