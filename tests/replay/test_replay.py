"""Committed histories replay on today's workflows: nobody's workflow in flight breaks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer
from temporalio.workflow import NondeterminismError
from volary_workflows.worker import WORKFLOWS

HISTORIES = sorted((Path(__file__).parent / "histories").glob("*.json"))
HISTORIES_BY_NAME = {path.stem: path for path in HISTORIES}
SOUND = [path for path in HISTORIES if not path.name.startswith("doctored")]
DOCTORED = [path for path in HISTORIES if path.name.startswith("doctored")]


def name_of(path: Path) -> str:
    return path.stem


def text_of(path: Path) -> str:
    return path.read_text()


def test_there_are_histories_of_both_kinds():
    assert len(SOUND) >= 20
    assert DOCTORED


@pytest.mark.parametrize("kind", ["rollout", "experiment"])
def test_one_of_them_continued_as_new_and_another_was_continued(kind):
    first, last = (HISTORIES_BY_NAME[f"{kind}_continued_{end}"] for end in ("first", "last"))
    assert "EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW" in text_of(first)
    begun = json.loads(text_of(last))["events"][0]["workflowExecutionStartedEventAttributes"]
    assert begun["continuedExecutionRunId"]


@pytest.mark.parametrize("path", SOUND, ids=name_of)
async def test_a_history_replays(path):
    await replayed(path.stem, text_of(path))


@pytest.mark.parametrize("path", DOCTORED, ids=name_of)
async def test_a_doctored_history_does_not(path):
    with pytest.raises(NondeterminismError):
        await replayed(path.stem, text_of(path))


async def replayed(name: str, text: str) -> None:
    history = WorkflowHistory.from_json(name, text)
    await Replayer(workflows=list(WORKFLOWS)).replay_workflow(history)
