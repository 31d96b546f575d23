"""Record the histories that `test_replay.py` replays: `python -m tests.replay.record`.

Run it when a shape is new; give its files new names and keep the old ones: they stand for
workflows in flight, such as `rollout_promoted`, which knew no staging and no search attributes.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from temporalio.client import WorkflowHandle
from temporalio.testing import WorkflowEnvironment
from volary_workflows.experiment.messages import ExperimentSpec
from volary_workflows.rollout.messages import (
    Command,
    FreezeWindow,
    Notification,
    RolloutSpec,
    RolloutStatus,
)

from tests.unit.workflows.days import time_skipping_environment
from tests.unit.workflows.experiment import world as experiments
from tests.unit.workflows.retrain import world as retraining
from tests.unit.workflows.rollout.world import (
    BAD,
    HOUR_S,
    SPEC,
    UNSURE,
    World,
    serving,
    started,
)

HISTORIES = Path(__file__).parent / "histories"
SHORT = replace(SPEC, poll_s=6 * HOUR_S)
DAILY = replace(experiments.SPEC, poll_s=86_400.0)
PLAN = replace(
    SHORT,
    cooldown_s=HOUR_S,
    freeze=[FreezeWindow(0.0, 6 * 86_400.0, weekly=True)],
    notify=[Notification("https://hooks.test/volary")],
)


async def main() -> None:
    """Write every history, and the doctored one; with names, only those."""
    HISTORIES.mkdir(exist_ok=True)
    async with await time_skipping_environment() as environment:
        promoted = await _rollout(environment, World())
        _write("rollout_staged_promoted", promoted)
        _write(
            "rollout_written_here_rolled_back",
            await _rollout(environment, World(looks={"50": BAD})),
        )
        _write("rollout_written_here_aborted", await _aborted(environment))
        _write("rollout_of_a_plan", await _rollout(environment, World(cooling_s=[HOUR_S]), PLAN))
        _write("retrain_alone_promoted", await _retrain(environment))
        first, last = await _continued(environment)
        _write("rollout_continued_first", first)
        _write("rollout_continued_last", last)
        await record_experiments(environment)
    _write("doctored_rollout_staged_promoted", doctored(promoted))


async def record_experiments(environment: WorkflowEnvironment) -> None:
    """Write one history that concludes with a winner, one that is fenced off."""
    won = await _experiment(environment, experiments.World(look=experiments.WON))
    _write("experiment_concluded", won)
    _write("doctored_experiment_concluded", doctored(won))
    first, last = await _continued_experiment(environment)
    _write("experiment_continued_first", first)
    _write("experiment_continued_last", last)
    grouped = replace(DAILY, group="checkout")
    _write("experiment_of_a_group", await _experiment(environment, experiments.World(), grouped))


async def _experiment(
    environment: WorkflowEnvironment,
    world: experiments.World,
    spec: ExperimentSpec = DAILY,
) -> dict[str, Any]:
    async with experiments.serving(environment, world) as queue:
        handle = await experiments.started(environment, queue, spec)
        await handle.result()
        return json.loads((await handle.fetch_history()).to_json())


async def _rollout(
    environment: WorkflowEnvironment, world: World, spec: RolloutSpec = SHORT
) -> dict[str, Any]:
    async with serving(environment, world) as queue:
        handle = await started(environment, queue, spec)
        await handle.result()
        return json.loads((await handle.fetch_history()).to_json())


async def _continued(environment: WorkflowEnvironment) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the first and the last run of a rollout whose bake takes more looks than one has."""
    async with serving(environment, World()) as queue:
        return await _ends(environment, await started(environment, queue, SHORT, looks_a_run=5))


async def _continued_experiment(
    environment: WorkflowEnvironment,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the first and the last run of an experiment of more looks than one has."""
    world = experiments.World(look=experiments.WON)
    async with experiments.serving(environment, world) as queue:
        handle = await experiments.started(environment, queue, DAILY, looks_a_run=3)
        return await _ends(environment, handle)


async def _ends(
    environment: WorkflowEnvironment, handle: WorkflowHandle[Any, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    await handle.result()
    client = environment.client
    first = client.get_workflow_handle(handle.id, run_id=handle.first_execution_run_id)
    last = client.get_workflow_handle(handle.id)
    return (
        json.loads((await first.fetch_history()).to_json()),
        json.loads((await last.fetch_history()).to_json()),
    )


async def _aborted(environment: WorkflowEnvironment) -> dict[str, Any]:
    world = World(looks={"canary": UNSURE})
    async with serving(environment, world) as queue:
        handle = await started(environment, queue, replace(SHORT, max_extensions=1_000))
        async with asyncio.timeout(20):
            while (await handle.query("status", result_type=RolloutStatus)).state != "CANARY":
                await environment.sleep(HOUR_S)
        await handle.execute_update("abort", Command("principals/ada"), result_type=RolloutStatus)
        await handle.result()
        return json.loads((await handle.fetch_history()).to_json())


async def _retrain(environment: WorkflowEnvironment) -> dict[str, Any]:
    async with retraining.serving(environment, retraining.RetrainWorld()) as queue:
        handle = await retraining.started(environment, queue)
        await handle.result()
        return json.loads((await handle.fetch_history()).to_json())


def doctored(history: dict[str, Any]) -> dict[str, Any]:
    """Return the history as if the version had been staged by an activity of another name."""
    text = json.dumps(history)
    return json.loads(text.replace('"stage_version"', '"stage_candidate"'))


def _write(name: str, history: dict[str, Any]) -> None:
    if sys.argv[1:] and name not in sys.argv[1:]:
        return
    text = re.sub(r'"identity": "[^"]*"', '"identity": "worker"', json.dumps(history, indent=1))
    (HISTORIES / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    asyncio.run(main())
