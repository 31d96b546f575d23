"""The activities against recording servers: what they send, what they make of the answers."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment
from volary.gateway.v1 import (
    evidence_pb2,
    evidence_service_pb2_grpc,
    replica_pb2,
    replica_service_pb2,
    replica_service_pb2_grpc,
    traffic_pb2,
    traffic_service_pb2_grpc,
)
from volary.monitor.v1 import monitor_pb2, monitor_service_pb2_grpc
from volary.registry.v1 import model_pb2, registry_service_pb2_grpc
from volary_kit.channels import Channels
from volary_kit.errors import Aborted, NotFound
from volary_kit.outgoing.dress import MeshDress
from volary_kit.testing import ManualClock
from volary_kit.webhooks import Webhooks
from volary_workflows.failures import failure_of
from volary_workflows.judge.inputs import Guard
from volary_workflows.judge.verdict import recompute
from volary_workflows.rollout.activities import RolloutActivities
from volary_workflows.rollout.evidence import cells_of, counts_of
from volary_workflows.rollout.explaining import explanation_of
from volary_workflows.rollout.messages import Look, Notification, RolloutSpec, Step, TrafficStep
from volary_workflows.rollout.tasks import JudgeTask, Subject, TrafficChange

SUBJECT = Subject("default", "delays", 2, "sha256:" + "0" * 64)
EDGES = [1_000, 10_000]
CLOCK = ManualClock(1_000 * 1_000_000)


@dataclass
class Peers(
    traffic_service_pb2_grpc.TrafficServiceServicer,
    replica_service_pb2_grpc.ReplicaServiceServicer,
    evidence_service_pb2_grpc.EvidenceServiceServicer,
    registry_service_pb2_grpc.RegistryServiceServicer,
    monitor_service_pb2_grpc.MonitorServiceServicer,
):
    """Gateway and registry that answer as they are told and remember what they were asked."""

    traffic: traffic_pb2.Traffic | None = None
    version: model_pb2.ModelVersion | None = None
    evidence: evidence_pb2.Evidence = field(default_factory=evidence_pb2.Evidence)
    readiness: list[replica_service_pb2.VersionReadiness] = field(default_factory=list)
    asked: list = field(default_factory=list)
    stored: dict[str, model_pb2.Evaluation] = field(default_factory=dict)
    compared: monitor_pb2.ShadowComparison = field(default_factory=monitor_pb2.ShadowComparison)
    outcomes: monitor_pb2.OutcomeSums = field(default_factory=monitor_pb2.OutcomeSums)

    async def CompareShadow(self, request, context):
        self.asked.append(request)
        return self.compared

    async def SumOutcomes(self, request, context):
        self.asked.append(request)
        return self.outcomes

    async def GetTraffic(self, request, context):
        if self.traffic is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no traffic")
        return self.traffic

    async def SetTraffic(self, request, context):
        self.asked.append(request)
        generation = request.expected_generation + 1
        self.traffic = traffic_pb2.Traffic(
            generation=generation, cause=request.cause, rollout=request.rollout, in_effect=True
        )
        return traffic_pb2.Traffic(generation=generation, rollout=request.rollout)

    async def GetEvidence(self, request, context):
        self.asked.append(request)
        return self.evidence

    async def LoadVersion(self, request, context):
        self.asked.append(request)
        return replica_service_pb2.VersionReadiness()

    async def GetVersionReadiness(self, request, context):
        if request.count_calls and not self.readiness:
            return replica_service_pb2.VersionReadiness()  # Envoy does not answer
        return self.readiness.pop(0)

    async def UnloadVersion(self, request, context):
        self.asked.append((request, len(self.readiness)))
        return replica_service_pb2.VersionReadiness()

    async def GetModelVersion(self, request, context):
        if self.version is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no version")
        return self.version

    async def DecideApproval(self, request, context):
        self.asked.append(request)
        return model_pb2.ModelVersion()

    async def CreateEvaluation(self, request, context):
        return self.stored.setdefault(request.evaluation_id, request.evaluation)


@asynccontextmanager
async def serving(peers):
    """Serve the peers on a port and yield activities that call them."""
    server = grpc.aio.server()
    traffic_service_pb2_grpc.add_TrafficServiceServicer_to_server(peers, server)
    replica_service_pb2_grpc.add_ReplicaServiceServicer_to_server(peers, server)
    evidence_service_pb2_grpc.add_EvidenceServiceServicer_to_server(peers, server)
    registry_service_pb2_grpc.add_RegistryServiceServicer_to_server(peers, server)
    monitor_service_pb2_grpc.add_MonitorServiceServicer_to_server(peers, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    channels = Channels(
        "workflows", dict.fromkeys(("gateway", "registry", "monitor"), address), MeshDress()
    )
    try:
        yield RolloutActivities(channels, Webhooks(["https://hooks.test"]), CLOCK)
    finally:
        await channels.close()
        await server.stop(None)


async def run(activity, message):
    return await ActivityEnvironment().run(activity, message)


def variant(version, outcomes, *, generation=8, shadow=False, latency=(0, 0, 0), complete=True):
    return evidence_pb2.VariantCounters(
        model="delays",
        generation=generation,
        version=version,
        shadow=shadow,
        outcomes=[
            evidence_pb2.OutcomeCount(
                code=code,
                tier=tier,
                count=count,
                first_attempts=count,
                error_event=(code, tier) != (0, "model"),
            )
            for code, tier, count in outcomes
        ],
        latency=evidence_pb2.LatencyCounts(edges_us=EDGES, counts=latency),
        complete=complete,
    )


def test_retries_are_no_events():
    served = variant(2, [(0, "model", 90), (14, "", 10)])
    served.outcomes[0].first_attempts, served.outcomes[1].first_attempts = 80, 4
    counts = counts_of([served])
    assert (counts.calls, counts.errors) == (84, 4)


def test_cells_hold_the_rollouts_own_generations_only():
    evidence = evidence_pb2.Evidence(
        variants=[
            variant(1, [(0, "model", 100)], generation=8),
            variant(2, [(0, "model", 90), (13, "", 10)], generation=8, shadow=True),
            variant(1, [(0, "model", 900)], generation=9),
            variant(2, [(0, "model", 80), (0, "rule", 20)], generation=9, complete=False),
            variant(2, [(13, "", 1_000)], generation=10),
        ]
    )
    written = [TrafficStep("canary", 9, 1_000), TrafficStep("shadow", 8, 0, 10_000)]
    shadow, canary = cells_of(evidence, written, 2, 1)
    assert (shadow.step, shadow.share, shadow.shadow, shadow.complete) == (
        "shadow",
        1.0,
        True,
        True,
    )
    assert (shadow.candidate.calls, shadow.candidate.errors) == (100, 10)
    assert shadow.baseline.calls == 100
    assert (canary.share, canary.complete) == (0.1, False)
    assert (canary.candidate.calls, canary.candidate.errors) == (100, 20)


async def test_preflight_freezes_thresholds_on_what_production_did():
    peers = Peers(
        traffic=traffic_pb2.Traffic(
            generation=7, production_version=1, rollout="projects/default/rollouts/before"
        ),
        version=model_pb2.ModelVersion(version=2, digest=SUBJECT.digest),
        evidence=evidence_pb2.Evidence(
            variants=[variant(1, [(0, "model", 1_000)], generation=7, latency=(900, 99, 1))]
        ),
    )
    async with serving(peers) as activities:
        found = await run(activities.check_rollout, RolloutSpec("delays", 2, steps=[Step(1_000)]))
    assert (found.baseline, found.generation, found.problems) == (1, 7, [])
    assert found.thresholds_us == [1_000, 10_000]
    assert (peers.asked[0].rollout, peers.asked[0].from_generation) == ("before", 7)


async def test_preflight_names_what_is_wrong_with_the_candidate():
    spec = RolloutSpec("delays", 2, steps=[Step(1_000)])
    async with serving(Peers()) as activities:
        missing = await run(activities.check_rollout, spec)
    assert missing.problems == ["candidate: version 2 of delays is not in the registry"]
    rejected = model_pb2.ModelVersion(
        version=2,
        approval=model_pb2.Approval(
            state=model_pb2.APPROVAL_STATE_REJECTED, principal="policy/gate"
        ),
    )
    peers = Peers(traffic_pb2.Traffic(generation=3, production_version=2), rejected)
    async with serving(peers) as activities:
        found = await run(activities.check_rollout, spec)
    assert found.problems == [
        "candidate: version 2 was rejected by policy/gate",
        "candidate: version 2 is in production already",
    ]


async def test_a_write_waits_until_it_is_in_effect():
    peers = Peers()
    change = TrafficChange(
        SUBJECT, 1, 1_000, 0, "canary", "delays-v2-abc", "STEP", 7, "", "user-id", reason="why"
    )
    async with serving(peers) as activities:
        state = await run(activities.set_traffic, change)
    sent = peers.asked[0]
    assert (state.generation, state.cause, state.rollout) == (8, "STEP", "delays-v2-abc")
    assert [(w.version, w.weight) for w in sent.weights] == [(2, 1_000), (1, 9_000)]
    assert sent.rollout == "projects/default/rollouts/delays-v2-abc"
    assert (sent.stickiness.header, sent.stickiness.salt) == ("user-id", "delays-v2-abc")
    assert not sent.HasField("shadow")


async def test_loading_waits_for_every_replica():
    peers = Peers(
        readiness=[
            replica_service_pb2.VersionReadiness(ready_replicas=1, attached_replicas=2),
            replica_service_pb2.VersionReadiness(ready_replicas=2, attached_replicas=2),
        ]
    )
    async with serving(peers) as activities:
        assert await run(activities.load_version, SUBJECT) == 2
    assert peers.asked[0].digest == SUBJECT.digest


async def test_a_version_that_a_replica_refuses_is_final():
    failed = replica_service_pb2.ReplicaVersion(
        replica_id="a",
        version=replica_pb2.LoadedVersion(error_reason="DIGEST_MISMATCH", error="other bytes"),
    )
    peers = Peers(
        readiness=[
            replica_service_pb2.VersionReadiness(
                attached_replicas=2, failed_replicas=1, replicas=[failed]
            )
        ]
    )
    async with serving(peers) as activities:
        with pytest.raises(ApplicationError) as refused:
            await run(activities.load_version, SUBJECT)
    assert (refused.value.type, refused.value.non_retryable) == ("VERSION_REFUSED", True)
    assert "DIGEST_MISMATCH" in str(refused.value)


def task(look: int, *, is_due: bool, last: Look | None = None) -> JudgeTask:
    written = [TrafficStep("canary", 8, 1_000)]
    return JudgeTask(
        SUBJECT, 1, "r", "canary", [Guard()], written, [], False, [], is_due, look, last or Look()
    )


async def test_a_verdict_is_stored_with_inputs_that_give_it_again():
    peers = Peers(
        evidence=evidence_pb2.Evidence(
            variants=[
                variant(2, [(0, "model", 100), (13, "", 50)]),
                variant(1, [(0, "model", 1_350)]),
            ],
            generation=8,
        )
    )
    async with serving(peers) as activities:
        look = await run(activities.judge_rollout, task(1, is_due=False))
    assert (look.verdict, look.calls, look.generation) == ("FAIL", 150, 8)
    stored = MessageToDict(peers.stored[look.evaluation])
    again = recompute(stored["inputs"])
    assert again.verdict == stored["verdict"] == "FAIL"
    assert again.reasons == stored["reasons"]


async def test_looks_that_say_nothing_new_are_not_stored():
    peers = Peers(
        evidence=evidence_pb2.Evidence(
            variants=[variant(2, [(0, "model", 500)]), variant(1, [(0, "model", 4_500)])]
        )
    )
    async with serving(peers) as activities:
        first = await run(activities.judge_rollout, task(1, is_due=False))
        second = await run(activities.judge_rollout, task(2, is_due=False, last=first))
        due = await run(activities.judge_rollout, task(3, is_due=True, last=second))
    assert first.verdict == "PASS"
    assert second.evaluation == first.evaluation == "r.canary.1"
    assert due.evaluation == "r.canary.3"
    assert list(peers.stored) == ["r.canary.1", "r.canary.3"]


async def test_a_look_that_is_repeated_gives_what_was_stored_first():
    peers = Peers(
        evidence=evidence_pb2.Evidence(
            variants=[variant(2, [(0, "model", 500)]), variant(1, [(0, "model", 4_500)])]
        )
    )
    async with serving(peers) as activities:
        first = await run(activities.judge_rollout, task(1, is_due=True))
        peers.evidence = evidence_pb2.Evidence(
            variants=[variant(2, [(13, "", 500)]), variant(1, [(0, "model", 4_500)])]
        )
        again = await run(activities.judge_rollout, task(1, is_due=True))
    assert again.verdict == first.verdict == "PASS"


@pytest.mark.parametrize(
    ("guard", "compared", "verdict", "code"),
    [
        (
            Guard("accuracy", "quality", margin=0.02),
            monitor_pb2.ShadowComparison(
                pairs=9_000, labelled=9_000, only_candidate_wrong=900, only_baseline_wrong=100
            ),
            "FAIL",
            "CANDIDATE_WORSE",
        ),
        (
            Guard("accuracy", "quality", margin=0.05),
            monitor_pb2.ShadowComparison(
                pairs=9_000, labelled=9_000, only_candidate_wrong=100, only_baseline_wrong=120
            ),
            "PASS",
            "GOOD_ENOUGH",
        ),
    ],
)
async def test_quality_is_judged_on_the_pairs_whose_truth_is_known(guard, compared, verdict, code):
    peers = Peers(
        version=model_pb2.ModelVersion(version=2, threshold=0.4),
        evidence=evidence_pb2.Evidence(
            variants=[variant(2, [(0, "model", 500)]), variant(1, [(0, "model", 4_500)])]
        ),
        compared=compared,
    )
    async with serving(peers) as activities:
        look = await run(activities.judge_rollout, replace(task(1, is_due=True), guards=[guard]))
    assert look.verdict == verdict
    assert code in look.reason_codes
    assert peers.asked[-1].threshold == 0.4
    stored = MessageToDict(peers.stored[look.evaluation])
    assert recompute(stored["inputs"]).reasons == stored["reasons"]


def sticky_variant(version, users, *, errors, first_errors, generation):
    """Return what gateway counts of a version's users in one step."""
    found = variant(version, [(0, "model", users)], generation=generation)
    found.users.users, found.users.users_with_error = users, errors
    found.users.users_first_error = first_errors
    return found


@pytest.mark.parametrize(
    ("is_counted", "verdict"), [(True, "FAIL"), (False, "INCONCLUSIVE")], ids=["first", "none"]
)
async def test_users_first_errors_add_up_over_sticky_steps(is_counted, verdict):
    """Three steps of which none says enough by itself, each of 10 %, of users who err anew."""
    steps = [TrafficStep(f"step-{g}", g, 1_000) for g in (8, 9, 10)]
    peers = Peers(
        evidence=evidence_pb2.Evidence(
            variants=[
                sticky_variant(
                    version,
                    users,
                    errors=errors,
                    first_errors=errors * is_counted,
                    generation=step.generation,
                )
                for step in steps
                for version, users, errors in ((2, 400, 8), (1, 3_600, 24))
            ],
            generation=10,
        )
    )
    asked = replace(task(1, is_due=True), written=steps, sticky=True, guards=[Guard(ceiling=0.0)])
    async with serving(peers) as activities:
        look = await run(activities.judge_rollout, asked)
    assert look.verdict == verdict


def bought(version: int, count: int, share: float, generation: int = 8):
    """Return the sums of a metric that is 0 or 1."""
    return monitor_pb2.VariantOutcomes(
        version=version,
        generation=generation,
        count=count,
        total=count * share,
        squares=count * share,
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [(0.05, 0.25, "FAIL"), (0.25, 0.25, "PASS")],
    ids=["worse", "equal"],
)
@pytest.mark.parametrize("is_sticky", [False, True], ids=["calls", "users"])
async def test_a_business_metric_is_judged_on_recorded_outcomes(ours, theirs, verdict, is_sticky):
    served = [(2, 5_000), (1, 5_000)]
    peers = Peers(
        evidence=evidence_pb2.Evidence(
            variants=[
                sticky_variant(version, n, errors=0, first_errors=0, generation=8)
                for version, n in served
            ]
        ),
        outcomes=monitor_pb2.OutcomeSums(
            # generation 7 is not the rollout's own: it must not count
            variants=[bought(2, 5_000, ours), bought(1, 5_000, theirs), bought(2, 9_000, 1.0, 7)]
        ),
    )
    guard = Guard("basket_value", "business", margin=0.1, lower=0.0, upper=50.0)
    asked = replace(
        task(1, is_due=True),
        written=[TrafficStep("half", 8, 5_000)],
        guards=[Guard(), guard],
        sticky=is_sticky,
    )
    async with serving(peers) as activities:
        look = await run(activities.judge_rollout, asked)
    assert look.verdict == verdict
    question = peers.asked[-1]
    assert (question.metric, question.upper, question.rollout) == ("basket_value", 50.0, "r")
    unit = monitor_pb2.OUTCOME_UNIT_UNIT_PER_STEP if is_sticky else monitor_pb2.OUTCOME_UNIT_CALL
    assert question.unit == unit
    stored = MessageToDict(peers.stored[look.evaluation])
    assert recompute(stored["inputs"]).reasons == stored["reasons"]


async def test_predictions_that_shift_ask_for_a_person():
    bins = [0] * 100
    bins[9] = 400  # what the baseline scores lowest the candidate scores highest
    peers = Peers(
        version=model_pb2.ModelVersion(version=2),
        evidence=evidence_pb2.Evidence(
            variants=[variant(2, [(0, "model", 5_000)]), variant(1, [(0, "model", 45_000)])]
        ),
        compared=monitor_pb2.ShadowComparison(pairs=500, bins=bins),
    )
    guards = [Guard(), Guard("score", "prediction_distribution", min_effect=0.1)]
    async with serving(peers) as activities:
        look = await run(activities.judge_rollout, replace(task(1, is_due=True), guards=guards))
    assert (look.verdict, look.reason_codes) == ("INCONCLUSIVE", ["PREDICTIONS_SHIFTED"])


async def test_guards_in_dry_run_are_stored_beside_the_verdict_and_decide_nothing():
    peers = Peers(
        evidence=evidence_pb2.Evidence(
            variants=[
                variant(2, [(0, "model", 100), (13, "", 50)]),
                variant(1, [(0, "model", 1_350)]),
            ]
        )
    )
    tried = replace(task(1, is_due=True), guards=[Guard(alpha=1e-300)], dry_run=[Guard()])
    async with serving(peers) as activities:
        look = await run(activities.judge_rollout, tried)
    assert look.verdict == "INCONCLUSIVE"
    assert look.dry_run[0].startswith("FAIL: ")
    assert explanation_of(peers.stored[look.evaluation]).agrees


async def test_preflight_knows_the_cooldown_and_the_web_hooks_that_are_barred():
    traffic = traffic_pb2.Traffic(
        generation=3, production_version=1, cause=traffic_pb2.CAUSE_ROLLBACK
    )
    traffic.update_time.seconds = 900  # the clock says 1,000
    peers = Peers(traffic, model_pb2.ModelVersion(version=2))
    spec = RolloutSpec(
        "delays",
        2,
        steps=[Step(1_000)],
        cooldown_s=600.0,
        notify=[Notification("https://hooks.test/a"), Notification("https://evil.test/b")],
    )
    async with serving(peers) as activities:
        found = await run(activities.check_rollout, spec)
    assert found.cooling_s == 500.0
    assert found.problems == ["notify[1].url: its origin is not in the allow-list of web hooks"]


async def test_a_version_of_another_model_is_refused_by_name():
    other = "projects/default/models/other/versions/2"
    peers = Peers(None, model_pb2.ModelVersion(name=other, version=2))
    async with serving(peers) as activities:
        found = await run(activities.check_rollout, RolloutSpec("delays", 2, steps=[Step(1_000)]))
    assert found.problems == [f"candidate: {other} is not a version of delays"]


def test_a_stale_generation_is_final_and_a_lost_peer_is_not():
    stale = failure_of(Aborted("STALE_GENERATION", "somebody wrote", {"cause": "brake"}))
    assert (stale.type, stale.non_retryable, stale.details) == (
        "STALE_GENERATION",
        True,
        ({"cause": "brake"},),
    )
    assert not failure_of(Aborted("CALL_IN_PROGRESS", "still running")).non_retryable
    assert failure_of(NotFound("MODEL_NOT_FOUND", "no such model")).non_retryable


def in_flight(*calls: int) -> list[replica_service_pb2.VersionReadiness]:
    return [replica_service_pb2.VersionReadiness(calls_in_flight=each) for each in calls]


async def test_a_version_is_let_go_once_its_last_call_was_answered():
    peers = Peers(readiness=in_flight(3, 0, 1, 0, 0, 7))
    async with serving(peers) as activities:
        assert await run(activities.unload_version, SUBJECT)
    ((request, unread),) = peers.asked
    assert request.name.endswith("/versions/2")
    assert unread == 1  # after two looks without a call, and not before


async def test_a_version_is_let_go_in_time_although_envoy_does_not_answer(monkeypatch):
    monkeypatch.setattr("volary_workflows.rollout.activities.DRAIN_S", 0.3)
    peers = Peers(readiness=in_flight(1))
    async with serving(peers) as activities:
        assert await run(activities.unload_version, SUBJECT)
    assert len(peers.asked) == 1
