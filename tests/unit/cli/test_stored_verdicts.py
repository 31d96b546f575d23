"""`volary rollout explain` and `volary experiment report`: judged again from what is stored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from typer.testing import CliRunner
from volary.registry.v1 import model_pb2, registry_service_pb2, registry_service_pb2_grpc
from volary_cli.commands.exits import CommandError, Exit
from volary_cli.main import app
from volary_workflows.judge.experiment import ArmCell, ArmShare, ExperimentInputs, judge_experiment
from volary_workflows.judge.inputs import Cell, Counts, Guard, Inputs, Scores
from volary_workflows.judge.verdict import judge

RUNNER = CliRunner()
ROLLOUT, EXPERIMENT = "delays-v2-01234567", "delays.x.bolder.01234567"
MODEL = "projects/default/models/delays"


def stored(inputs, verdict, **more) -> model_pb2.Evaluation:
    return model_pb2.Evaluation(
        verdict=verdict.verdict,
        reason_codes=verdict.reason_codes,
        reasons=verdict.reasons,
        judge_version=verdict.judge_version,
        inputs=ParseDict(inputs.to_document(), Struct()),
        statistics=ParseDict(verdict.to_document(), Struct()),
        **more,
    )


def look(step: str, errors: int, rollout: str = ROLLOUT) -> model_pb2.Evaluation:
    inputs = Inputs([Guard()], [Cell(step, 8, 0.1, Counts(150, errors), Counts(1_350, 0))])
    name = f"{MODEL}/evaluations/{rollout}.{step}.1"
    return stored(inputs, judge(inputs), name=name, kind="step", step=step, rollout=rollout)


def concluded() -> model_pb2.Evaluation:
    users = {"today": Counts(5_000, users=5_000), "bold": Counts(5_000, users=5_000)}
    inputs = ExperimentInputs(
        [ArmShare("today", 1, 0.5), ArmShare("bold", 2, 0.5)],
        "today",
        "basket_value",
        [ArmCell(8, users)],
        {"today": Scores(5_000, 1_000.0, 300.0), "bold": Scores(5_000, 1_500.0, 500.0)},
    )
    name = f"{MODEL}/evaluations/{EXPERIMENT}.report"
    return stored(
        inputs, judge_experiment(inputs), name=name, kind="experiment", rollout=EXPERIMENT
    )


class Registry(registry_service_pb2_grpc.RegistryServiceServicer):
    """Holds evaluations, and gives them one by one: a page each."""

    def __init__(self) -> None:
        self.evaluations: list[model_pb2.Evaluation] = []

    def ListEvaluations(self, request, context):
        at = int(request.page_token or 0)
        more = at + 1 < len(self.evaluations)
        return registry_service_pb2.ListEvaluationsResponse(
            evaluations=self.evaluations[at : at + 1], next_page_token=str(at + 1) if more else ""
        )

    def GetEvaluation(self, request, context):
        for each in self.evaluations:
            if each.name == request.name:
                return each
        context.abort(grpc.StatusCode.NOT_FOUND, "no such evaluation")
        raise AssertionError


@pytest.fixture
def registry(monkeypatch) -> Iterator[Registry]:
    found, server = Registry(), grpc.server(ThreadPoolExecutor(1))
    registry_service_pb2_grpc.add_RegistryServiceServicer_to_server(found, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("VOLARY_ADDRESS", f"127.0.0.1:{port}")
    yield found
    server.stop(None)


def volary(*words: str):
    return RUNNER.invoke(app, [*words])


def test_every_verdict_of_a_rollout_is_judged_again(registry):
    gate = model_pb2.Evaluation(kind="gate", candidate_version=2, verdict="PASS")
    gate.reason_codes.append("NO_BASELINE")
    gate.reasons.append("nothing is in production yet")
    registry.evaluations = [look("canary", 0), look("50", 60), look("canary", 9, "other"), gate]
    shown = volary("rollout", "explain", ROLLOUT)
    assert shown.exit_code == Exit.OK, shown.output
    assert shown.stdout.count("agrees") == 3
    found = json.loads(volary("rollout", "explain", ROLLOUT, "--json").stdout)
    assert {(each["kind"], each["step"], each["verdict"]) for each in found} == {
        ("step", "canary", "PASS"),
        ("step", "50", "FAIL"),
        ("gate", "", "PASS"),
    }
    assert all(each["agrees"] for each in found)


def test_a_verdict_that_was_altered_ends_with_a_status_of_its_own(registry):
    altered = look("canary", 60)
    altered.verdict = "PASS"
    registry.evaluations = [altered]
    shown = volary("rollout", "explain", ROLLOUT)
    assert shown.exit_code == Exit.REFUSED
    assert "differs" in shown.stdout
    (found,) = json.loads(volary("rollout", "explain", ROLLOUT, "--json").stdout)
    assert (found["verdict"], found["recomputed"], found["agrees"]) == ("PASS", "FAIL", False)


@pytest.mark.parametrize(
    ("rollout", "text"),
    [("nonsense", "is no rollout id"), ("delays-v9-76543210", "nothing is stored of rollout")],
)
def test_a_rollout_that_is_not_known_is_refused_by_name(registry, rollout, text):
    registry.evaluations = [look("canary", 0)]
    refused = volary("rollout", "explain", rollout)
    assert isinstance(refused.exception, CommandError)
    assert refused.exception.status == Exit.REFUSED
    assert text in str(refused.exception)


def test_a_report_is_shown_and_judged_again(registry):
    registry.evaluations = [concluded()]
    shown = volary("experiment", "report", EXPERIMENT)
    assert shown.exit_code == Exit.OK, shown.output
    for word in ("WINNER", "agrees", "basket_value 0.3", "+0.1 in [+0."):
        assert word in shown.stdout
    found = json.loads(volary("experiment", "report", EXPERIMENT, "--json").stdout)
    assert (found["report"]["verdict"], found["again"]["agrees"]) == ("WINNER", True)


def test_a_report_that_was_altered_is_found_out(registry):
    registry.evaluations = [concluded()]
    registry.evaluations[0].inputs["scores"]["bold"]["total"] = 1_000.0
    shown = volary("experiment", "report", EXPERIMENT)
    assert shown.exit_code == Exit.REFUSED
    assert "differs: " in shown.stdout


@pytest.mark.parametrize(
    ("experiment", "text"),
    [(ROLLOUT, "is no experiment id"), ("delays.x.other.01234567", "no report is stored")],
)
def test_a_report_that_is_not_there_is_refused_by_name(registry, experiment, text):
    refused = volary("experiment", "report", experiment)
    assert isinstance(refused.exception, CommandError)
    assert text in str(refused.exception)
