"""What a retrain does to the world, through gRPC alone; each may run twice with one effect."""

from __future__ import annotations

from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Struct
from temporalio import activity
from volary.features.v1 import feature_pb2, features_service_pb2, features_service_pb2_grpc
from volary.gateway.v1 import traffic_service_pb2, traffic_service_pb2_grpc
from volary.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc
from volary.registry.v1 import model_pb2, registry_service_pb2, registry_service_pb2_grpc
from volary.trainer.v1 import run_pb2, trainer_service_pb2, trainer_service_pb2_grpc
from volary_kit.channels import Channels
from volary_kit.errors import Internal, NotFound
from volary_kit.timestamps import from_us, to_us

from volary_workflows.judge.gate import GateVerdict, PairedLosses, judge_gate
from volary_workflows.judge.inputs import FAIL, PASS
from volary_workflows.retrain.declaration import plan_of
from volary_workflows.retrain.floors import FLOORS_VERSION, broken_floors
from volary_workflows.retrain.messages import (
    BuildTask,
    Built,
    GateLook,
    GateTask,
    Pulled,
    PullTask,
    Retrain,
    Trained,
    TrainingPlan,
    TrainTask,
)
from volary_workflows.retrain.operations import followed


class RetrainActivities:
    """The activities of `RetrainWorkflow`, over channels to the services that it drives."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self._ingest = ingest_service_pb2_grpc.IngestServiceStub(channels.to("ingest"))
        self._features = features_service_pb2_grpc.FeaturesServiceStub(channels.to("features"))
        self._trainer = trainer_service_pb2_grpc.TrainerServiceStub(channels.to("trainer"))
        self._registry = registry_service_pb2_grpc.RegistryServiceStub(channels.to("registry"))
        self._traffic = traffic_service_pb2_grpc.TrafficServiceStub(channels.to("gateway"))

    @activity.defn
    async def read_training(self, retrain: Retrain) -> TrainingPlan:
        """Return the plan of the declared training."""
        name = f"projects/{retrain.project}/trainings/{retrain.training}"
        training = await self._trainer.GetTraining(
            trainer_service_pb2.GetTrainingRequest(name=name)
        )
        return plan_of(MessageToDict(training.document), project=retrain.project)

    @activity.defn
    async def pull_source(self, task: PullTask) -> Pulled:
        """Pull a source up to the instant; pulling twice adds nothing."""
        request = ingest_service_pb2.StartPullRequest(
            source=f"projects/{task.project}/sources/{task.source}", request_id=task.request_id
        )
        if task.until_us:
            request.until.CopyFrom(from_us(task.until_us))
        operation = await self._ingest.StartPull(request)
        done = await followed(
            self._channels.to("ingest"), operation, ingest_service_pb2.PullResponse()
        )
        return Pulled(
            task.source,
            done.snapshot.name,
            done.batch.accepted_rows,
            to_us(done.snapshot.known_until) if done.snapshot.HasField("known_until") else 0,
        )

    @activity.defn
    async def build_training_set(self, task: BuildTask) -> Built:
        """Build a training set; the same inputs give the same set."""
        operation = await self._features.BuildTrainingSet(
            features_service_pb2.BuildTrainingSetRequest(
                parent=f"projects/{task.project}",
                feature_set=f"projects/{task.project}/featureSets/{task.feature_set}",
                spine=_spine(task),
                start_time=from_us(task.start_us),
                end_time=from_us(task.end_us),
                known_until=from_us(task.known_until_us),
                snapshots=task.snapshots,
                request_id=task.request_id,
            )
        )
        built = await followed(self._channels.to("features"), operation, feature_pb2.TrainingSet())
        return Built(built.name, built.rows)

    @activity.defn
    async def train(self, task: TrainTask) -> Trained:
        """Train and register a version; a cancelled activity stops the run."""
        operation = await self._trainer.StartRun(
            trainer_service_pb2.StartRunRequest(
                training=f"projects/{task.project}/trainings/{task.training}",
                training_set=task.training_set,
                trigger=task.trigger,
                request_id=task.request_id,
            )
        )
        run = await followed(self._channels.to("trainer"), operation, run_pb2.Run())
        version = run.model_version.rpartition("/")[2]
        if not version.isdigit():
            raise Internal("RUN_WITHOUT_VERSION", f"{run.name} ended without a version")
        return Trained(run.name, int(version), dict(run.metrics))

    @activity.defn
    async def judge_gate(self, task: GateTask) -> GateLook:
        """Hold the candidate against production on held-out rows; store inputs and verdict."""
        baseline = await self._production(task)
        operation = await self._trainer.CompareVersions(
            trainer_service_pb2.CompareVersionsRequest(
                candidate=_version_name(task, task.candidate),
                baseline=_version_name(task, baseline) if baseline else "",
                training_set=task.training_set,
                start_time=from_us(task.start_us),
                end_time=from_us(task.end_us),
                request_id=task.request_id,
            )
        )
        seen = await followed(self._channels.to("trainer"), operation, run_pb2.Comparison())
        verdict = judge_gate(task.rule, _losses(task, seen)) if baseline else None
        broken = broken_floors(task.floors, seen.candidate_metrics)
        return await self._store(task, baseline, seen, verdict, broken)

    async def _production(self, task: GateTask) -> int:
        """Return the version in production by gateway, which alone knows; 0 for none."""
        name = f"projects/{task.project}/models/{task.model}/traffic"
        try:
            traffic = await self._traffic.GetTraffic(
                traffic_service_pb2.GetTrafficRequest(name=name)
            )
        except NotFound:
            return 0
        return traffic.production_version

    async def _store(
        self,
        task: GateTask,
        baseline: int,
        seen: run_pb2.Comparison,
        verdict: GateVerdict | None,
        broken: list[str],
    ) -> GateLook:
        decided = PASS if verdict is None else verdict.verdict
        codes = ["NO_BASELINE" if verdict is None else verdict.reason_code]
        reasons = ["nothing is in production yet" if verdict is None else verdict.reason]
        if broken:
            decided, codes, reasons = FAIL, ["BELOW_FLOOR", *codes], [*broken, *reasons]
        stored = await self._registry.CreateEvaluation(
            registry_service_pb2.CreateEvaluationRequest(
                parent=f"projects/{task.project}/models/{task.model}",
                evaluation_id=task.key,
                evaluation=model_pb2.Evaluation(
                    kind="gate",
                    candidate_version=task.candidate,
                    baseline_version=baseline,
                    verdict=decided,
                    reason_codes=codes,
                    reasons=reasons,
                    judge_version=FLOORS_VERSION if verdict is None else verdict.gate_version,
                    inputs=ParseDict(
                        {"comparison": MessageToDict(seen), "floors": task.floors}, Struct()
                    ),
                    statistics=ParseDict(
                        {} if verdict is None else verdict.to_document(), Struct()
                    ),
                ),
            )
        )
        return GateLook(
            stored.verdict,
            list(stored.reason_codes),
            list(stored.reasons),
            task.key,
            stored.baseline_version,
            seen.rows,
        )


def _losses(task: GateTask, seen: run_pb2.Comparison) -> PairedLosses:
    found = next((d for d in seen.differences if d.metric == task.rule.metric), None)
    if found is None:
        raise Internal("METRIC_NOT_COMPARED", f"the comparison lacks {task.rule.metric}")
    return PairedLosses(
        found.metric, seen.rows, found.mean, found.variance, found.lower_bound, found.upper_bound
    )


def _spine(task: BuildTask) -> features_service_pb2.Spine:
    """Return the declared spine; its source is an id in the document, a name in the call."""
    source = str(task.spine.get("source", ""))
    return ParseDict(
        {**task.spine, "source": f"projects/{task.project}/sources/{source}"},
        features_service_pb2.Spine(),
    )


def _version_name(task: GateTask, version: int) -> str:
    return f"projects/{task.project}/models/{task.model}/versions/{version}"
