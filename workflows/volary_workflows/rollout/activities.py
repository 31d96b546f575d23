"""What a rollout does to the world, through gRPC alone; each may run twice with one effect."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from temporalio import activity
from temporalio.exceptions import ApplicationError
from volary.gateway.v1 import (
    evidence_service_pb2,
    evidence_service_pb2_grpc,
    replica_service_pb2,
    replica_service_pb2_grpc,
    traffic_pb2,
    traffic_service_pb2,
)
from volary.registry.v1 import model_pb2, registry_service_pb2, registry_service_pb2_grpc
from volary_kit.channels import Channels
from volary_kit.clock import Clock
from volary_kit.errors import Aborted, FailedPrecondition, NotFound
from volary_kit.timestamps import to_us
from volary_kit.webhooks import Webhooks

from volary_workflows.experiment.ownership import experiment_on
from volary_workflows.judge.inputs import QUANTILES, Inputs
from volary_workflows.judge.series import freeze_thresholds
from volary_workflows.judge.verdict import Verdict, judge
from volary_workflows.rollout.evidence import cells_of, edges_of, latency_of, step_calls
from volary_workflows.rollout.messages import WHOLE, Look, RolloutSpec
from volary_workflows.rollout.names import model_name, traffic_name, version_name
from volary_workflows.rollout.outcomes import Outcomes
from volary_workflows.rollout.shadow_diffs import ShadowPairs, paired_inputs
from volary_workflows.rollout.soundness import PAIRED_KINDS
from volary_workflows.rollout.tasks import (
    ApprovalDecision,
    JudgeTask,
    Notice,
    Preflight,
    Subject,
    TrafficChange,
    TrafficState,
)
from volary_workflows.rollout.traffic import STALE
from volary_workflows.rollout.traffic_calls import EFFECT_POLL_S, TrafficCalls, id_of, state_of

READY_WAIT_S = 5.0
DRAIN_S = 10.0  # no call is let take longer by default; Envoy may be away
QUIET_LOOKS = 2  # a call between two attempts is none for some milliseconds
MISSING_KEY = "MISSING_KEY_BASELINE"
MICROS = 1_000_000
WENT_BACK = (traffic_pb2.CAUSE_ROLLBACK, traffic_pb2.CAUSE_BREAK_GLASS, traffic_pb2.CAUSE_BRAKE)


class RolloutActivities:
    """The activities of `RolloutWorkflow`, over channels to gateway and registry."""

    def __init__(self, channels: Channels, webhooks: Webhooks, clock: Clock) -> None:
        self._webhooks = webhooks
        self._pairs = ShadowPairs(channels)
        self._outcomes = Outcomes(channels)
        self._clock = clock
        gateway, registry = channels.to("gateway"), channels.to("registry")
        self._traffic = TrafficCalls(channels)
        self._replicas = replica_service_pb2_grpc.ReplicaServiceStub(gateway)
        self._evidence = evidence_service_pb2_grpc.EvidenceServiceStub(gateway)
        self._registry = registry_service_pb2_grpc.RegistryServiceStub(registry)

    @activity.defn
    async def check_rollout(self, spec: RolloutSpec) -> Preflight:
        """Return what the rollout starts from, and what in its specification the world refuses."""
        subject = Subject(spec.project, spec.model, spec.candidate)
        try:
            version = await self._version(subject)
        except NotFound:
            text = f"candidate: version {spec.candidate} of {spec.model} is not in the registry"
            return Preflight("", 0, 0, "", "", [], [text])
        traffic = await self._traffic.current(subject)
        production = traffic.production_version if traffic else 0
        return Preflight(
            digest=version.digest,
            baseline=production,
            generation=traffic.generation if traffic else 0,
            approval=model_pb2.ApprovalState.Name(version.approval.state),
            approved_by=version.approval.principal,
            thresholds_us=await self._thresholds(subject, traffic) if traffic else [],
            problems=[
                *_refusals(spec, version, production),
                *_owners(traffic),
                *self._hooks(spec),
            ],
            approval_comment=version.approval.comment,
            approved_at_s=to_us(version.approval.decide_time) / MICROS,
            cooling_s=self._cooling_s(spec, traffic),
        )

    def _hooks(self, spec: RolloutSpec) -> Iterator[str]:
        for i, hook in enumerate(spec.notify):
            if not self._webhooks.allows(hook.url):
                yield f"notify[{i}].url: its origin is not in the allow-list of web hooks"

    def _cooling_s(self, spec: RolloutSpec, traffic: traffic_pb2.Traffic | None) -> float:
        """Return how long the cooldown lasts since traffic last went back."""
        if traffic is None or traffic.cause not in WENT_BACK:
            return 0.0
        since_s = (self._clock.now_us() - to_us(traffic.update_time)) / MICROS
        return max(0.0, spec.cooldown_s - since_s)

    @activity.defn
    async def notify(self, notice: Notice) -> None:
        """Tell a web hook."""
        told = asdict(notice)
        del told["url"]
        await self._webhooks.post(notice.url, told, notice.id)

    @activity.defn
    async def decide_approval(self, decision: ApprovalDecision) -> None:
        """Record who let the candidate through, or did not."""
        state = "APPROVED" if decision.approved else "REJECTED"
        await self._registry.DecideApproval(
            registry_service_pb2.DecideApprovalRequest(
                name=version_name(decision.subject),
                state=model_pb2.ApprovalState.Value(f"APPROVAL_STATE_{state}"),
                comment=decision.comment,
                principal=decision.principal,
                request_id=decision.request_id,
            )
        )

    @activity.defn
    async def load_version(self, subject: Subject) -> int:
        """Have every replica load and warm the version; return how many hold it ready.

        Fails for good with `VERSION_REFUSED` when a replica refuses it.
        """
        name = version_name(subject)
        await self._replicas.LoadVersion(
            replica_service_pb2.LoadVersionRequest(
                name=name,
                digest=subject.digest,
                rollout_generation=subject.rollout_generation,
            )
        )
        while True:
            seen = await self._replicas.GetVersionReadiness(
                replica_service_pb2.GetVersionReadinessRequest(name=name, wait_for_ready=True),
                timeout=READY_WAIT_S,
            )
            if seen.failed_replicas:
                raise _refusal(name, seen)
            if 0 < seen.attached_replicas == seen.ready_replicas:
                return seen.ready_replicas
            await asyncio.sleep(EFFECT_POLL_S)

    @activity.defn
    async def unload_version(self, subject: Subject) -> bool:
        """Let the replicas drop the version; False when it is somebody else's meanwhile.

        Somebody gave it traffic, or a later rollout has loaded it.

        Calls that were routed before the traffic changed are still being answered, or retried:
        their endpoints stay until Envoy has had none on its way, or for `DRAIN_S`.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                await self._drained(version_name(subject))
        request = replica_service_pb2.UnloadVersionRequest(
            name=version_name(subject), rollout_generation=subject.rollout_generation
        )
        try:
            await self._replicas.UnloadVersion(request)
        except (FailedPrecondition, NotFound):
            return False
        except Aborted as error:
            if error.reason != STALE:
                raise
            return False
        return True

    async def _drained(self, name: str) -> None:
        request = replica_service_pb2.GetVersionReadinessRequest(name=name, count_calls=True)
        quiet = 0
        while quiet < QUIET_LOOKS:
            seen = await self._replicas.GetVersionReadiness(request)
            is_quiet = seen.HasField("calls_in_flight") and not seen.calls_in_flight
            quiet = quiet + 1 if is_quiet else 0
            await asyncio.sleep(EFFECT_POLL_S)

    @activity.defn
    async def set_traffic(self, change: TrafficChange) -> TrafficState:
        """Write the traffic and return once it is in effect; fails with `STALE_GENERATION`."""
        return state_of(await self._traffic.put(traffic_request(change), change.subject))

    @activity.defn
    async def read_traffic(self, subject: Subject) -> TrafficState:
        """Return what the traffic is now."""
        traffic = await self._traffic.current(subject)
        if traffic is None:
            return TrafficState(0, "", "")
        return state_of(traffic)

    @activity.defn
    async def judge_rollout(self, task: JudgeTask) -> Look:
        """Read the counts, judge them, store inputs and verdict where they decide something."""
        evidence = await self._evidence.GetEvidence(
            evidence_service_pb2.GetEvidenceRequest(
                model=model_name(task.subject), rollout=task.rollout
            )
        )
        inputs = Inputs(
            guards=task.guards,
            cells=cells_of(evidence, task.written, task.subject.version, task.baseline),
            edges_us=edges_of(evidence),
            thresholds_us=task.thresholds_us,
            sticky=task.sticky,
            acknowledged=task.acknowledged,
        )
        every = [*task.guards, *task.dry_run]
        if any(guard.kind in PAIRED_KINDS for guard in every):
            pairs = await self._pairs.compared(task.subject, task.baseline, task.rollout)
            inputs = paired_inputs(inputs, pairs)
        inputs = await self._outcomes.scored(
            inputs, every, task.subject, task.baseline, task.rollout
        )
        verdict = judge(inputs)
        trial = judge(replace(inputs, guards=task.dry_run)) if task.dry_run else None
        look = Look(
            verdict=verdict.verdict,
            reason_codes=verdict.reason_codes,
            reasons=verdict.reasons,
            more_calls=verdict.more_calls,
            calls=step_calls(evidence, task.written, task.subject.version),
            exposed_calls=sum(cell.candidate.calls for cell in inputs.cells if not cell.shadow),
            evaluation=task.last.evaluation,
            generation=evidence.generation,
            dry_run=[f"{trial.verdict}: {text}" for text in trial.reasons] if trial else [],
        )
        if not _is_news(task, look):
            return look
        return await self._store(task, inputs, verdict, look, trial)

    async def _store(
        self, task: JudgeTask, inputs: Inputs, verdict: Verdict, look: Look, trial: Verdict | None
    ) -> Look:
        """Store under the look's key; what an earlier attempt stored is what holds."""
        key = f"{task.rollout}.{task.step}.{task.look}"
        stored = await self._registry.CreateEvaluation(
            registry_service_pb2.CreateEvaluationRequest(
                parent=model_name(task.subject),
                evaluation_id=key,
                evaluation=model_pb2.Evaluation(
                    kind="bake" if task.step == "bake" else "step",
                    candidate_version=task.subject.version,
                    baseline_version=task.baseline,
                    rollout=task.rollout,
                    step=task.step,
                    verdict=verdict.verdict,
                    reason_codes=verdict.reason_codes,
                    reasons=verdict.reasons,
                    judge_version=verdict.judge_version,
                    inputs=ParseDict(inputs.to_document(), Struct()),
                    statistics=ParseDict(_statistics(task, verdict, trial), Struct()),
                ),
            )
        )
        return replace(
            look,
            verdict=stored.verdict,
            reason_codes=list(stored.reason_codes),
            reasons=list(stored.reasons),
            evaluation=key,
        )

    async def _version(self, subject: Subject) -> model_pb2.ModelVersion:
        return await self._registry.GetModelVersion(
            registry_service_pb2.GetModelVersionRequest(name=version_name(subject))
        )

    async def _thresholds(self, subject: Subject, traffic: traffic_pb2.Traffic) -> list[int]:
        """Freeze the latency thresholds on what production has done under the present traffic."""
        evidence = await self._evidence.GetEvidence(
            evidence_service_pb2.GetEvidenceRequest(
                model=model_name(subject),
                rollout=id_of(traffic.rollout),
                from_generation=traffic.generation,
            )
        )
        counts = latency_of(evidence, traffic.production_version)
        return freeze_thresholds(edges_of(evidence), counts, QUANTILES)


def traffic_request(change: TrafficChange) -> traffic_service_pb2.SetTrafficRequest:
    """Return the request of a change: the candidate first, the shares summing to 10,000."""
    shares = [(change.subject.version, change.weight), (change.baseline, WHOLE - change.weight)]
    request = traffic_service_pb2.SetTrafficRequest(
        name=traffic_name(change.subject),
        expected_generation=change.expected_generation,
        weights=[
            traffic_pb2.Weight(version=version, weight=weight)
            for version, weight in shares
            if weight > 0
        ],
        rollout=f"projects/{change.subject.project}/rollouts/{change.rollout}",
        step=change.step,
        cause=traffic_pb2.Cause.Value(f"CAUSE_{change.cause}"),
        reason=change.reason[:1024],
        production_version=change.production,
        request_id=change.request_id,
    )
    if change.shadow:
        request.shadow.version = change.subject.version
        request.shadow.fraction = change.shadow
    if change.sticky_by:
        request.stickiness.header = change.sticky_by
        request.stickiness.salt = change.rollout[:64]
        request.stickiness.missing_key = traffic_pb2.MissingKey.Value(MISSING_KEY)
    return request


def _refusals(spec: RolloutSpec, version: model_pb2.ModelVersion, production: int) -> Iterator[str]:
    named = version.name or version_name(Subject(spec.project, spec.model, spec.candidate))
    if named != version_name(Subject(spec.project, spec.model, spec.candidate)):
        yield f"candidate: {named} is not a version of {spec.model}"
    if version.approval.state == model_pb2.APPROVAL_STATE_REJECTED:
        yield f"candidate: version {spec.candidate} was rejected by {version.approval.principal}"
    if production == spec.candidate:
        yield f"candidate: version {spec.candidate} is in production already"


def _owners(traffic: traffic_pb2.Traffic | None) -> Iterator[str]:
    owner = experiment_on(traffic) if traffic else ""
    if owner:
        yield f"model: {owner}: stop it, or wait for its end"


def _refusal(name: str, seen: replica_service_pb2.VersionReadiness) -> ApplicationError:
    failed = [each for each in seen.replicas if each.version.error_reason]
    text = "; ".join(
        f"{each.replica_id}: {each.version.error_reason} {each.version.error}" for each in failed
    )
    return ApplicationError(
        f"{name} is refused by {seen.failed_replicas} of {seen.attached_replicas} replicas: {text}",
        type="VERSION_REFUSED",
        non_retryable=True,
    )


def _statistics(task: JudgeTask, verdict: Verdict, trial: Verdict | None) -> dict[str, Any]:
    """Return what the judge found; guards in dry run are beside it with their own finding."""
    if trial is None:
        return verdict.to_document()
    guards = [asdict(guard) for guard in task.dry_run]
    return verdict.to_document() | {"dry_run": {"guards": guards} | trial.to_document()}


def _is_news(task: JudgeTask, look: Look) -> bool:
    """Store a verdict that ends or advances a step, and every change of mind."""
    is_decisive = look.verdict == "FAIL" or (task.is_due and look.verdict == "PASS")
    is_other = (look.verdict, look.reason_codes) != (task.last.verdict, task.last.reason_codes)
    return is_decisive or is_other
