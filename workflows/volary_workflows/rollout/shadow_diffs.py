"""The diff report of a shadow: the candidate's answers beside the served ones, stored once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Struct
from temporalio import activity
from volary.monitor.v1 import monitor_pb2, monitor_service_pb2, monitor_service_pb2_grpc
from volary.registry.v1 import model_pb2, registry_service_pb2, registry_service_pb2_grpc
from volary_kit.channels import Channels

from volary_workflows.judge.inputs import BINS, Inputs, PairedBins, PairedOutcomes, PairedScores
from volary_workflows.rollout.messages import ShadowDiff
from volary_workflows.rollout.names import model_name, version_name
from volary_workflows.rollout.tasks import ShadowTask, Subject

KIND = "shadow_diff"
VERSION = "paired-answers/1"
REPORTED = "REPORTED"
SLICES_TOLD = 3


class ShadowPairs:
    """Monitor's pairs of a rollout: what its shadow answered beside what was served."""

    def __init__(self, channels: Channels) -> None:
        self._monitor = monitor_service_pb2_grpc.MonitorServiceStub(channels.to("monitor"))
        self._registry = registry_service_pb2_grpc.RegistryServiceStub(channels.to("registry"))

    async def compared(
        self, subject: Subject, baseline: int, rollout: str
    ) -> monitor_pb2.ShadowComparison:
        """Return the comparison at the candidate's own decision threshold."""
        version = await self._registry.GetModelVersion(
            registry_service_pb2.GetModelVersionRequest(name=version_name(subject))
        )
        return await self._monitor.CompareShadow(
            monitor_service_pb2.CompareShadowRequest(
                model=model_name(subject),
                candidate_version=subject.version,
                baseline_version=baseline,
                rollout=rollout,
                threshold=version.threshold,
            )
        )


class ShadowActivities:
    """The activity that reads a shadow's pairs from monitor and stores them in the registry."""

    def __init__(self, channels: Channels) -> None:
        self._pairs = ShadowPairs(channels)
        self._registry = registry_service_pb2_grpc.RegistryServiceStub(channels.to("registry"))

    @activity.defn
    async def report_shadow(self, task: ShadowTask) -> ShadowDiff:
        """Store the diff under the task's key; what an earlier attempt stored is what holds."""
        compared = await self._pairs.compared(task.subject, task.baseline, task.rollout)
        document = MessageToDict(compared, preserving_proto_field_name=True)
        stored = await self._registry.CreateEvaluation(
            registry_service_pb2.CreateEvaluationRequest(
                parent=model_name(task.subject),
                evaluation_id=task.key,
                evaluation=model_pb2.Evaluation(
                    kind=KIND,
                    candidate_version=task.subject.version,
                    baseline_version=task.baseline,
                    rollout=task.rollout,
                    step="shadow",
                    verdict=REPORTED,
                    reasons=summary_of(document),
                    judge_version=VERSION,
                    statistics=ParseDict(document, Struct()),
                ),
            )
        )
        return diff_of(MessageToDict(stored.statistics), list(stored.reasons), task.key)


def paired_inputs(inputs: Inputs, compared: monitor_pb2.ShadowComparison) -> Inputs:
    """Return the judge's inputs with the pairs: outcomes, squared errors and bins of scores."""
    outcomes = PairedOutcomes(
        "accuracy",
        compared.labelled,
        compared.only_candidate_wrong,
        compared.only_baseline_wrong,
    )
    differences = PairedScores(
        "brier", compared.labelled, compared.brier_difference, compared.brier_difference_squares
    )
    rows = [list(compared.bins[i : i + BINS]) for i in range(0, len(compared.bins), BINS)]
    return replace(
        inputs,
        outcomes=[outcomes] if compared.labelled else [],
        differences=[differences] if compared.labelled else [],
        paired_bins=[PairedBins("score", rows)] if rows else [],
    )


def diff_of(document: Mapping[str, Any], summary: list[str], key: str) -> ShadowDiff:
    """Return the short form of a stored diff."""
    pairs = int(document.get("pairs", 0))
    agreeing = int(document.get("agreeing", 0))
    return ShadowDiff(
        pairs=pairs,
        agreement=agreeing / pairs if pairs else 0.0,
        score_shift=float(document.get("mean_shift", 0.0)),
        summary=summary,
        evaluation=key,
    )


def summary_of(document: Mapping[str, Any]) -> list[str]:
    """Return the diff in words, the same from what was read and from what was stored."""
    pairs = int(document.get("pairs", 0))
    if not pairs:
        return ["no request was answered by both versions", _sides(document)]
    agreeing = int(document.get("agreeing", 0))
    shift = float(document.get("mean_shift", 0.0))
    size = float(document.get("mean_absolute_shift", 0.0))
    told = [
        f"{agreeing / pairs:.2%} of {pairs:,} pairs agree on the decision",
        f"scores shift by {shift:+.4f} in the mean, by {size:.4f} in size",
        _sides(document),
    ]
    labelled = int(document.get("labelled", 0))
    if labelled:
        ours = int(document.get("only_candidate_wrong", 0))
        theirs = int(document.get("only_baseline_wrong", 0))
        told.append(
            f"of {labelled:,} pairs with known truth the candidate alone was wrong on {ours:,}, "
            f"the baseline alone on {theirs:,}"
        )
    return told + [_slice(each, pairs, agreeing) for each in _furthest(document)]


def _sides(document: Mapping[str, Any]) -> str:
    ours, theirs = document.get("candidate", {}), document.get("baseline", {})
    return (
        f"errors {_share(ours)} against {_share(theirs)}; in the replica "
        f"p50 {_ms(ours, 'p50_us')} against {_ms(theirs, 'p50_us')}, "
        f"p99 {_ms(ours, 'p99_us')} against {_ms(theirs, 'p99_us')}"
    )


def _share(side: Mapping[str, Any]) -> str:
    calls = int(side.get("calls", 0))
    return f"{int(side.get('errors', 0)) / calls:.2%} of {calls:,}" if calls else "none of 0"


def _ms(side: Mapping[str, Any], quantile: str) -> str:
    return f"{int(side.get(quantile, 0)) / 1_000:.1f} ms"


def _furthest(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the slices that agree least, where one agrees less than all pairs do."""
    whole = int(document.get("agreeing", 0)) / int(document["pairs"])
    less = [each for each in document.get("slices", []) if _agreement(each) < whole]
    return sorted(less, key=_agreement)[:SLICES_TOLD]


def _agreement(found: Mapping[str, Any]) -> float:
    return int(found.get("agreeing", 0)) / int(found["pairs"])


def _slice(found: Mapping[str, Any], pairs: int, agreeing: int) -> str:
    return (
        f"{found['entity']} {found['key']}: {_agreement(found):.2%} of {int(found['pairs']):,} "
        f"agree, {agreeing / pairs:.2%} over all"
    )
