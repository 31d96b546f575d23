"""Stored verdicts, computed once more from their stored inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from google.protobuf.json_format import MessageToDict
from volary.registry.v1 import model_pb2

from volary_workflows.judge import experiment
from volary_workflows.judge.gate import GATE_VERSION, PairedLosses, judge_gate
from volary_workflows.judge.inputs import FAIL, PASS, GateRule, Guard, Inputs
from volary_workflows.judge.verdict import VERSION, judge
from volary_workflows.retrain.floors import FLOORS_VERSION, broken_floors
from volary_workflows.rollout import shadow_diffs

OF_STEPS = ("step", "bake")
JUDGES = (VERSION, GATE_VERSION, FLOORS_VERSION, shadow_diffs.VERSION, experiment.VERSION)


@dataclass(frozen=True)
class Explanation:
    """One verdict: as it was stored, as it comes out today, and whether the two are the same.

    `judge` is the judge that spoke then, `is_same_judge` whether it is the one that speaks today:
    another one may differ with good reason. `dry_run` are the guards that decided nothing,
    `begun_again` says in words which steps were counted anew because records were lost.
    """

    evaluation: str
    kind: str
    step: str
    at_s: float
    verdict: str
    recomputed: str
    agrees: bool
    judge: str
    is_same_judge: bool
    reasons: list[str]
    recomputed_reasons: list[str]
    dry_run: list[str]
    begun_again: list[str] = field(default_factory=list)


def explanations(evaluations: Iterable[model_pb2.Evaluation]) -> list[Explanation]:
    """Return one explanation for each evaluation, oldest first."""
    ordered = sorted(evaluations, key=lambda each: each.create_time.ToMicroseconds())
    return [explanation_of(each) for each in ordered]


def explanation_of(stored: model_pb2.Evaluation) -> Explanation:
    """Judge a stored evaluation again."""
    inputs, statistics = MessageToDict(stored.inputs), MessageToDict(stored.statistics)
    verdict, codes, reasons = _again(stored, inputs, statistics)
    is_same = (verdict, codes, reasons) == (
        stored.verdict,
        list(stored.reason_codes),
        list(stored.reasons),
    )
    trial, is_trial_same = _dry_run(inputs, statistics)
    return Explanation(
        evaluation=stored.name.rpartition("/")[2],
        kind=stored.kind,
        step=stored.step,
        at_s=stored.create_time.ToMicroseconds() / 1_000_000,
        verdict=stored.verdict,
        recomputed=verdict,
        agrees=is_same and is_trial_same,
        judge=stored.judge_version,
        is_same_judge=stored.judge_version in JUDGES,
        reasons=list(stored.reasons),
        recomputed_reasons=reasons,
        dry_run=trial,
        begun_again=list(_begun_again(stored.kind, inputs)),
    )


def _begun_again(kind: str, inputs: Mapping[str, Any]) -> Iterator[str]:
    """Say where a step was written anew: what was counted before stays, against the candidate."""
    cells = Inputs.from_document(dict(inputs)).cells if kind in OF_STEPS else []
    for before, after in pairwise(cells):
        if before.step == after.step:
            yield (
                f"{before.step} began again: records of generation {before.generation:.0f} were "
                f"lost ({before.candidate.calls:.0f} calls of the candidate are known), so that "
                f"it is counted anew since generation {after.generation:.0f}"
            )


def _again(
    stored: model_pb2.Evaluation, inputs: Mapping[str, Any], statistics: Mapping[str, Any]
) -> tuple[str, list[str], list[str]]:
    if stored.kind == "gate":
        return _gate(inputs, statistics)
    if stored.kind == shadow_diffs.KIND:
        return shadow_diffs.REPORTED, [], shadow_diffs.summary_of(statistics)
    if stored.kind == experiment.KIND:
        judged = experiment.judge_experiment(
            experiment.ExperimentInputs.from_document(dict(inputs))
        )
        return judged.verdict, judged.reason_codes, judged.reasons
    verdict = judge(Inputs.from_document(dict(inputs)))
    return verdict.verdict, verdict.reason_codes, verdict.reasons


def _gate(
    inputs: Mapping[str, Any], statistics: Mapping[str, Any]
) -> tuple[str, list[str], list[str]]:
    decided, codes, reasons = PASS, ["NO_BASELINE"], ["nothing is in production yet"]
    if statistics:
        rule = statistics["rule"]
        again = judge_gate(
            GateRule(**{**rule, "min_rows": int(rule["min_rows"])}),
            PairedLosses(**{**statistics["losses"], "rows": int(statistics["losses"]["rows"])}),
        )
        decided, codes, reasons = again.verdict, [again.reason_code], [again.reason]
    metrics = inputs.get("comparison", {}).get("candidateMetrics", {})
    broken = broken_floors(inputs.get("floors", {}), metrics)
    if broken:
        return FAIL, ["BELOW_FLOOR", *codes], [*broken, *reasons]
    return decided, codes, reasons


def _dry_run(inputs: Mapping[str, Any], statistics: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Return what the guards in dry run say, and whether that comes out again."""
    stored = statistics.get("dry_run")
    if not stored:
        return [], True
    guards = [Guard(**guard) for guard in stored["guards"]]
    again = judge(replace(Inputs.from_document(dict(inputs)), guards=guards))
    texts = [f"{again.verdict}: {text}" for text in again.reasons]
    return texts, (again.verdict, again.reasons) == (stored["verdict"], stored["reasons"])
