"""`volary rollout plan` needs no mesh when it is told the rates."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner
from volary_cli.main import app

RUNNER = CliRunner()
FLIGHTS = str(Path(__file__).parents[3] / "examples" / "flights")
RATES = ("--calls-per-s", "12", "--baseline-error", "0.01", "--runs", "100")


def plan(*words):
    return RUNNER.invoke(app, ["rollout", "plan", "flights-delay", "-p", FLIGHTS, *words])


def test_the_example_is_planned_without_a_mesh():
    answer = plan(*RATES)
    assert answer.exit_code == 0, answer.output
    assert "flights-delay at 12 calls a second, 1.000% errors" in answer.stdout
    for word in ("shadow", "canary", "50 %", "false alarm", "cannot see regressions"):
        assert word in answer.stdout


def test_json_holds_the_whole_plan():
    found = json.loads(plan(*RATES, "--json").stdout)
    assert found["model"] == "flights-delay"
    assert [stage["name"] for stage in found["stages"]] == ["shadow", "canary", "50 %"]
    assert {power["metric"] for power in found["powers"]} == {"error_rate", "latency"}
    assert found["total_s"] >= sum(stage["duration_s"] for stage in found["stages"])


def test_rates_and_projects_that_make_no_plan_are_refused():
    refused = plan("--calls-per-s", "0", "--baseline-error", "0.01")
    assert refused.exit_code != 0
    assert "calls_per_s must be above 0" in str(refused.exception)
    other = RUNNER.invoke(app, ["rollout", "plan", "nobody", "-p", FLIGHTS, *RATES])
    assert "declares 0 rollouts of nobody" in str(other.exception)
