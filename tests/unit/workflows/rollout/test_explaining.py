"""Stored verdicts are computed again, and a doctored one is found out."""

from __future__ import annotations

from dataclasses import asdict

from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from volary.registry.v1 import model_pb2
from volary_workflows.judge.gate import PairedLosses, judge_gate
from volary_workflows.judge.inputs import Cell, Counts, GateRule, Guard, Inputs
from volary_workflows.judge.verdict import judge
from volary_workflows.rollout.explaining import explanation_of, explanations

INPUTS = Inputs([Guard()], [Cell("canary", 8, 0.1, Counts(150, 50), Counts(1_350, 0))])


def struct(document) -> Struct:
    return ParseDict(document, Struct())


def stored(inputs=INPUTS, *, at_s=0, trial=None, **more) -> model_pb2.Evaluation:
    verdict = judge(inputs)
    statistics = verdict.to_document()
    if trial is not None:
        statistics["dry_run"] = {"guards": [asdict(g) for g in trial.guards]}
        statistics["dry_run"] |= judge(trial).to_document()
    evaluation = model_pb2.Evaluation(
        name="projects/default/models/delays/evaluations/r.canary.1",
        kind="step",
        step="canary",
        verdict=verdict.verdict,
        reason_codes=verdict.reason_codes,
        reasons=verdict.reasons,
        judge_version=verdict.judge_version,
        inputs=struct(inputs.to_document()),
        statistics=struct(statistics),
    )
    evaluation.create_time.seconds = at_s
    evaluation.MergeFrom(model_pb2.Evaluation(**more))
    return evaluation


def test_a_verdict_comes_out_again():
    found = explanation_of(stored())
    assert (found.verdict, found.recomputed, found.agrees) == ("FAIL", "FAIL", True)
    assert found.is_same_judge
    assert found.recomputed_reasons == found.reasons


def test_a_verdict_that_was_altered_is_found_out():
    found = explanation_of(stored(verdict="PASS"))
    assert (found.verdict, found.recomputed, found.agrees) == ("PASS", "FAIL", False)


def test_inputs_that_were_altered_are_found_out():
    evaluation = stored()
    evaluation.inputs.CopyFrom(
        struct(
            Inputs([Guard()], [Cell("canary", 8, 0.1, Counts(150), Counts(1_350))]).to_document()
        )
    )
    assert not explanation_of(evaluation).agrees


def test_a_step_that_began_again_is_said_to_have():
    lost = Cell("canary", 9, 0.1, Counts(40), Counts(360), complete=False)
    cells = [Cell("shadow", 8, 1.0, Counts(99), Counts(99), shadow=True), lost]
    found = explanation_of(stored(Inputs([Guard()], cells)))
    assert found.begun_again == []
    anew = Cell("canary", 10, 0.1, Counts(500), Counts(4_500))
    found = explanation_of(stored(Inputs([Guard()], [*cells, anew])))
    assert found.agrees
    (text,) = found.begun_again
    assert "canary began again" in text
    assert "generation 9 " in text
    assert "40 calls" in text
    assert "generation 10" in text


def test_guards_in_dry_run_are_judged_again_too():
    trial = Inputs([Guard(alpha=0.05)], INPUTS.cells)
    found = explanation_of(stored(trial=trial))
    assert found.agrees
    assert found.dry_run[0].startswith("FAIL: ")


def test_a_gate_comes_out_again_with_its_floors():
    gate = judge_gate(GateRule(), PairedLosses("log_loss", 5_000, -0.02, 0.04, -27.6, 27.6))
    evaluation = model_pb2.Evaluation(
        kind="gate",
        verdict="FAIL",
        reason_codes=["BELOW_FLOOR", gate.reason_code],
        reasons=["auc is 0.6000, below its floor 0.62", gate.reason],
        judge_version=gate.gate_version,
        inputs=struct({"comparison": {"candidateMetrics": {"auc": 0.6}}, "floors": {"auc": 0.62}}),
        statistics=struct(gate.to_document()),
    )
    assert explanation_of(evaluation).agrees
    evaluation.inputs.CopyFrom(
        struct({"comparison": {"candidateMetrics": {"auc": 0.7}}, "floors": {"auc": 0.62}})
    )
    assert explanation_of(evaluation).recomputed == gate.verdict


def test_they_are_told_in_the_order_of_time():
    assert [each.at_s for each in explanations([stored(at_s=9), stored(at_s=3)])] == [3.0, 9.0]
