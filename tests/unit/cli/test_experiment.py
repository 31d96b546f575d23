"""`volary experiment` against a real Temporal, with a small world behind its worker."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner
from volary_cli.commands.exits import CommandError, Exit
from volary_cli.main import app
from volary_cli.projects import read_project
from volary_kit.documents import DocumentError
from volary_kit.errors import AlreadyExists
from volary_workflows.worker import make_worker, register_attributes

from tests.unit.workflows.experiment.world import UNSURE, World

RUNNER = CliRunner()
FLIGHTS = Path(__file__).parents[3] / "examples" / "flights"
DOCUMENT = """\
kind: Experiment
name: bolder
owner: shop
on_call: pager
spec:
  model: {model}
  arms:
    - {{ name: today, version: 1, share: 50% }}
    - {{ name: bold, version: 2, share: {share} }}
  control: today
  metric: {{ name: basket_value, range: [0, 100] }}
  sticky_by: user-id
  segment: {{ header: x-ring, values: [beta, dev] }}
  max_duration: 60s
"""


def declared(folder: Path, model: str = "told", share: str = "50%") -> str:
    file = folder / "experiment.yaml"
    file.write_text(DOCUMENT.format(model=model, share=share))
    return str(file)


@pytest.fixture
async def volary(temporal, temporal_address, monkeypatch):
    """Return a way to run a command beside a worker of the usual queue."""
    monkeypatch.setenv("VOLARY_ADDRESS", "127.0.0.1:9")  # no command of these asks the mesh
    monkeypatch.setenv("VOLARY_TEMPORAL_ADDRESS", temporal_address)
    await register_attributes(temporal)

    async def run(*words: str):
        return await asyncio.to_thread(RUNNER.invoke, app, ["experiment", *words])

    async with make_worker(temporal, World(look=UNSURE).activities()):
        yield run


async def state_of(volary, model: str, *states: str) -> SimpleNamespace:
    """Ask until the experiment is in one of the states."""
    async with asyncio.timeout(30):
        while True:
            shown = await volary("status", model, "--json")
            found = json.loads(shown.stdout) if shown.exit_code == Exit.OK else {"state": ""}
            if found["state"] in states:
                return SimpleNamespace(**found)
            await asyncio.sleep(0.05)


async def test_an_experiment_is_started_shown_listed_and_stopped(volary, tmp_path):
    begun = await volary("start", declared(tmp_path), "-m", "why not", "--json")
    assert begun.exit_code == Exit.OK, begun.output
    found = await state_of(volary, "told", "RUNNING")
    assert (found.name, found.control, [arm["version"] for arm in found.arms]) == (
        "bolder",
        "today",
        [1, 2],
    )
    second = await volary("start", declared(tmp_path))
    assert isinstance(second.exception, AlreadyExists)
    shown = await volary("status", "told")
    for word in ("bolder on told, by basket_value", "x-ring: beta, dev", "control", "50 %"):
        assert word in shown.stdout
    stopped = await volary("stop", "told", "-m", "the sale begins")
    assert stopped.exit_code == Exit.OK, stopped.output
    ended = await state_of(volary, "told", "STOPPED")
    assert (ended.reason, ended.look["report"]) == ("the sale begins", f"{ended.experiment}.report")
    async with asyncio.timeout(30):  # Temporal's list is a moment behind
        while True:
            rows = json.loads((await volary("list", "--json")).stdout)
            mine = [row for row in rows if row["model"] == "told"]
            if mine and mine[0]["ended"]:
                break
            await asyncio.sleep(0.1)
    assert mine[0]["state"] == "STOPPED"


async def test_a_wrong_declaration_is_refused_with_its_field(volary, tmp_path):
    refused = await volary("start", declared(tmp_path, "never", "40%"))
    assert isinstance(refused.exception, CommandError)
    assert "arms: their shares must sum to 100 %" in str(refused.exception)
    unknown = await volary("status", "never")
    assert isinstance(unknown.exception, CommandError)
    assert unknown.exception.status == Exit.REFUSED


def test_the_example_is_read_and_a_broken_one_is_told_with_its_place(tmp_path):
    (example,) = [each for each in read_project(FLIGHTS) if each.kind == "Experiment"]
    assert example.spec["metric"]["source"] == "truth"
    declared(tmp_path, share="40%")
    with pytest.raises(DocumentError, match=r"line 5: spec\.arms: their shares"):
        read_project(tmp_path)
