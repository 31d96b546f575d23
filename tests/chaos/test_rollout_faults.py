"""A process is lost at each state of a rollout: it ends as it would have, or goes back.

Here two rollouts lose a process at every state that they come through;
`python -m bench.rollout.faults` loses every process at every state, one a rollout, and
docs/benchmarks/rollout-faults.md has what came of that.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.chaos.rollouts import LOST, NOTHING, STANDS, Loss, Rollouts, rollouts

PORT_BASE = 19_300
PROMOTED = {
    "PENDING": "temporal",
    "VALIDATING": "gateway",
    "AWAITING_APPROVAL": "worker",
    "LOADING": "inference",
    "STAGING": "envoy",
    "SHADOW": "worker",
    "CANARY": "inference",
    "PROGRESSING": "temporal",
    "BAKING": "envoy",
    "PROMOTING": "gateway",
}
ABORTED = {"ROLLING_BACK": "worker", "UNLOADING": "gateway"}

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rollouts]:
    with pytest.MonkeyPatch.context() as patch:
        # on a busy machine a replica is not back within the 12 s that are the default
        patch.setenv("VOLARY_INFERENCE_LAST_WAIT_S", "60")
        async with rollouts(tmp_path_factory.mktemp("faults") / "mesh", PORT_BASE) as running:
            yield running


def losses(lost: dict[str, str]) -> list[Loss]:
    return [Loss(stand, lost[stand.name]) for stand in STANDS if stand.name in lost]


@pytest.mark.parametrize("lost", [PROMOTED, ABORTED], ids=["promoted", "aborted"])
async def test_a_rollout_survives_the_loss_of_a_process_at_every_state(
    running: Rollouts, lost: dict[str, str]
):
    outcome = await running.run(*losses(lost))
    assert outcome.problems == []


def test_every_state_and_every_process_has_its_turn():
    assert {stand.name for stand in STANDS} == PROMOTED.keys() | ABORTED.keys()
    # a frozen worker is in tests/unit/workflows/test_worker_process.py, at every state
    assert {*PROMOTED.values(), *ABORTED.values()} == set(LOST) - {NOTHING, "worker frozen"}
