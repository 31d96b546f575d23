"""Gateway's counters and monitor's sums as the inputs of the experiment's judge."""

from __future__ import annotations

from collections.abc import Sequence

from volary.gateway.v1 import evidence_pb2
from volary.monitor.v1 import monitor_pb2, monitor_service_pb2

from volary_workflows.experiment.messages import TRUTH, ExperimentSpec
from volary_workflows.judge.experiment import ArmCell, ArmShare, ExperimentInputs
from volary_workflows.judge.inputs import Scores
from volary_workflows.rollout.evidence import counts_of
from volary_workflows.rollout.messages import WHOLE


def inputs_of(
    spec: ExperimentSpec,
    written: Sequence[int],
    evidence: evidence_pb2.Evidence,
    sums: monitor_pb2.OutcomeSums,
) -> ExperimentInputs:
    """Return everything that the verdict depends on."""
    metric = spec.metric
    return ExperimentInputs(
        arms=[ArmShare(arm.name, arm.version, arm.weight / WHOLE) for arm in spec.arms],
        control=spec.control,
        metric=metric.name,
        cells=[_cell(spec, evidence, generation) for generation in written],
        scores=_scores(spec, written, sums),
        guard=spec.guard,
        lower=metric.lower,
        upper=metric.upper,
        center=(metric.expected - metric.lower) / (metric.upper - metric.lower),
        higher_is_better=metric.higher_is_better,
        alpha=spec.alpha,
        alpha_of_ratio=spec.alpha_of_ratio,
        min_effect=spec.min_effect,
        is_sticky=bool(spec.sticky_by),
    )


def question_of(
    spec: ExperimentSpec, model: str, experiment: str, threshold: float
) -> monitor_service_pb2.SumOutcomesRequest:
    """Return what monitor is asked for: the metric over what the experiment routed."""
    metric = spec.metric
    is_truth = metric.source == TRUTH
    return monitor_service_pb2.SumOutcomesRequest(
        model=model,
        rollout=experiment,
        metric=metric.name,
        lower=metric.lower,
        upper=metric.upper,
        unit=monitor_pb2.OUTCOME_UNIT_UNIT if spec.sticky_by else monitor_pb2.OUTCOME_UNIT_CALL,
        source=monitor_pb2.OUTCOME_SOURCE_TRUTH
        if is_truth
        else monitor_pb2.OUTCOME_SOURCE_RECORDED,
        threshold=threshold,
    )


def _cell(spec: ExperimentSpec, evidence: evidence_pb2.Evidence, generation: int) -> ArmCell:
    mine = [v for v in evidence.variants if v.generation == generation and not v.shadow]
    arms = {arm.name: counts_of(v for v in mine if v.version == arm.version) for arm in spec.arms}
    return ArmCell(generation, arms, all(variant.complete for variant in mine))


def _scores(
    spec: ExperimentSpec, written: Sequence[int], sums: monitor_pb2.OutcomeSums
) -> dict[str, Scores]:
    """Return sums by arm; those of generations that are not the experiment's own are left out."""
    found = {arm.name: Scores() for arm in spec.arms}
    names = {arm.version: arm.name for arm in spec.arms}
    for each in sums.variants:
        name = names.get(each.version)
        if name is None or (each.generation and each.generation not in written):
            continue
        was = found[name]
        found[name] = Scores(
            was.count + each.count, was.total + each.total, was.squares + each.squares
        )
    return found
