"""What an experiment does to the world, through gRPC alone; each may run twice with one effect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Struct
from temporalio import activity
from volary.gateway.v1 import (
    evidence_pb2,
    evidence_service_pb2,
    evidence_service_pb2_grpc,
    traffic_pb2,
    traffic_service_pb2,
)
from volary.monitor.v1 import monitor_pb2, monitor_service_pb2_grpc
from volary.registry.v1 import model_pb2, registry_service_pb2, registry_service_pb2_grpc
from volary_kit.channels import Channels
from volary_kit.errors import DeadlineExceeded, NotFound, Unavailable

from volary_workflows.experiment.evidence import inputs_of, question_of
from volary_workflows.experiment.messages import (
    TRUTH,
    Arm,
    ArmLook,
    ExperimentLook,
    ExperimentSpec,
)
from volary_workflows.experiment.ownership import owner_of
from volary_workflows.experiment.tasks import ExperimentTask, Preflight, Split
from volary_workflows.judge.experiment import (
    HARMFUL,
    INVALID,
    KIND,
    UNDECIDED,
    ExperimentInputs,
    ExperimentVerdict,
    judge_experiment,
)
from volary_workflows.rollout.names import model_name, traffic_name, version_name
from volary_workflows.rollout.tasks import Subject, TrafficState
from volary_workflows.rollout.traffic_calls import TrafficCalls, state_of

MONITOR_AWAY = "MONITOR_AWAY"


class ExperimentActivities:
    """The activities of `ExperimentWorkflow`, over channels to gateway, registry and monitor."""

    def __init__(self, channels: Channels) -> None:
        gateway, registry = channels.to("gateway"), channels.to("registry")
        self._traffic = TrafficCalls(channels)
        self._evidence = evidence_service_pb2_grpc.EvidenceServiceStub(gateway)
        self._registry = registry_service_pb2_grpc.RegistryServiceStub(registry)
        self._monitor = monitor_service_pb2_grpc.MonitorServiceStub(channels.to("monitor"))

    @activity.defn
    async def check_experiment(self, spec: ExperimentSpec) -> Preflight:
        """Return what the experiment starts from, and what in it the world refuses."""
        digests: list[str] = []
        problems: list[str] = []
        for i, arm in enumerate(spec.arms):
            digest, problem = await self._digest(spec, arm)
            digests.append(digest)
            problems += [f"arms[{i}].version: {problem}"] if problem else []
        traffic = await self._traffic.current(_subject(spec))
        problems += _refusals(spec, traffic)
        return Preflight(traffic.generation if traffic else 0, digests, problems)

    async def _digest(self, spec: ExperimentSpec, arm: Arm) -> tuple[str, str]:
        """Return an arm's artifact, or what stands against it."""
        subject = Subject(spec.project, spec.model, arm.version)
        try:
            version = await self._version(subject)
        except NotFound:
            return "", f"version {arm.version} of {spec.model} is not in the registry"
        if version.name and version.name != version_name(subject):
            return "", f"{version.name} is not a version of {spec.model}"
        if version.approval.state == model_pb2.APPROVAL_STATE_REJECTED:
            return "", f"version {arm.version} was rejected by {version.approval.principal}"
        return version.digest, ""

    @activity.defn
    async def set_split(self, split: Split) -> TrafficState:
        """Write the split and return once it is in effect; fails with `STALE_GENERATION`."""
        return state_of(await self._traffic.put(request_of(split), split.subject))

    @activity.defn
    async def judge_experiment(self, task: ExperimentTask) -> ExperimentLook:
        """Read the counts and sums, judge them, and store the report where it concludes."""
        spec = task.spec
        evidence = await self._evidence.GetEvidence(
            evidence_service_pb2.GetEvidenceRequest(
                model=model_name(_subject(spec)), rollout=task.experiment
            )
        )
        sums = await self._sums(task)
        inputs = inputs_of(spec, task.written, evidence, sums or monitor_pb2.OutcomeSums())
        verdict = judge_experiment(inputs)
        if task.is_last or _concludes(task, verdict):
            return await self._stored(task, inputs, verdict, evidence)
        look = _look(verdict, evidence)
        if sums is None:
            return replace(look, reason_codes=[*look.reason_codes, MONITOR_AWAY])
        return look

    async def _sums(self, task: ExperimentTask) -> monitor_pb2.OutcomeSums | None:
        """Return the sums of the metric; None when monitor is away, which the guard outlives."""
        spec = task.spec
        model = model_name(_subject(spec))
        question = question_of(spec, model, task.experiment, await self._cut(spec))
        try:
            return await self._monitor.SumOutcomes(question)
        except (Unavailable, DeadlineExceeded):
            if task.is_last:
                raise
            return None

    async def _stored(
        self,
        task: ExperimentTask,
        inputs: ExperimentInputs,
        verdict: ExperimentVerdict,
        evidence: evidence_pb2.Evidence,
    ) -> ExperimentLook:
        """Store the report once: what an earlier attempt stored is what holds."""
        spec, key = task.spec, f"{task.experiment}.report"
        winner = {arm.name: arm.version for arm in spec.arms}.get(verdict.winner)
        stored = await self._registry.CreateEvaluation(
            registry_service_pb2.CreateEvaluationRequest(
                parent=model_name(_subject(spec)),
                evaluation_id=key,
                evaluation=model_pb2.Evaluation(
                    kind=KIND,
                    candidate_version=winner or spec.treatments[0].version,
                    baseline_version=spec.production.version,
                    rollout=task.experiment,
                    verdict=verdict.verdict,
                    reason_codes=verdict.reason_codes,
                    reasons=verdict.reasons,
                    judge_version=verdict.judge_version,
                    inputs=ParseDict(inputs.to_document(), Struct()),
                    statistics=ParseDict(verdict.to_document() | {"spec": asdict(spec)}, Struct()),
                ),
            )
        )
        return look_of(stored, key, evidence.generation)

    async def _cut(self, spec: ExperimentSpec) -> float:
        """Return from which score on a decision is a yes: the control's, for all arms alike."""
        if spec.metric.source != TRUTH:
            return 0.0
        subject = Subject(spec.project, spec.model, spec.production.version)
        return (await self._version(subject)).threshold

    async def _version(self, subject: Subject) -> model_pb2.ModelVersion:
        return await self._registry.GetModelVersion(
            registry_service_pb2.GetModelVersionRequest(name=version_name(subject))
        )


def _refusals(spec: ExperimentSpec, traffic: traffic_pb2.Traffic | None) -> Iterator[str]:
    if traffic is None or not traffic.production_version:
        yield f"model: nothing of {spec.model} is in production yet"
        return
    if spec.production.version != traffic.production_version:
        yield f"control: its version must be in production, which is {traffic.production_version}"
    owner = owner_of(traffic)
    if owner:
        yield f"model: {owner}"


def request_of(split: Split) -> traffic_service_pb2.SetTrafficRequest:
    """Return the request of a split; who is not of the segment, or has no key, is in no arm."""
    request = traffic_service_pb2.SetTrafficRequest(
        name=traffic_name(split.subject),
        expected_generation=split.expected_generation,
        weights=[traffic_pb2.Weight(version=arm.version, weight=arm.weight) for arm in split.arms],
        rollout=f"projects/{split.subject.project}/rollouts/{split.experiment}",
        step=split.step,
        cause=traffic_pb2.CAUSE_STEP,
        reason=split.reason[:1024],
        request_id=split.request_id,
    )
    if split.sticky_by:
        request.stickiness.header = split.sticky_by
        request.stickiness.salt = split.salt
        request.stickiness.missing_key = traffic_pb2.MISSING_KEY_BASELINE
    if split.segment.header:
        request.audience.header = split.segment.header
        request.audience.values.extend(split.segment.values)
    return request


def look_of(stored: model_pb2.Evaluation, key: str, generation: int) -> ExperimentLook:
    """Return a stored report as the workflow shows it."""
    statistics = MessageToDict(stored.statistics)
    return ExperimentLook(
        verdict=stored.verdict,
        winner=statistics["winner"],
        reason_codes=list(stored.reason_codes),
        reasons=list(stored.reasons),
        arms=[_arm(row) for row in statistics["findings"]],
        report=key,
        generation=generation,
    )


def _arm(row: dict[str, Any]) -> ArmLook:
    """Return a stored arm; a Struct has turned its ints to floats."""
    counts = {key: int(row[key]) for key in ("version", "units", "outcomes", "more_units")}
    return ArmLook(**{**row, **counts})


def _look(verdict: ExperimentVerdict, evidence: evidence_pb2.Evidence) -> ExperimentLook:
    return ExperimentLook(
        verdict=verdict.verdict,
        winner=verdict.winner,
        reason_codes=verdict.reason_codes,
        reasons=verdict.reasons,
        arms=[ArmLook(**asdict(finding)) for finding in verdict.findings],
        generation=evidence.generation,
    )


def _concludes(task: ExperimentTask, verdict: ExperimentVerdict) -> bool:
    """Say whether nothing is left to wait for: harm at once, an answer once it is due."""
    if verdict.verdict in (INVALID, HARMFUL):
        return True
    return task.is_due and verdict.verdict != UNDECIDED


def _subject(spec: ExperimentSpec) -> Subject:
    return Subject(spec.project, spec.model, spec.production.version)
