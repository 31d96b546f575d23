"""Staging: each replica answers golden and contract calls before anybody's traffic does.

Gateway says where the replicas are. They are called one by one and not through a route, because a
route would let one good replica answer for a bad one. The calls are marked as shadow, so that no
metric counts them, and no router sees them, so that they are no evidence.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from inference import grpc_service_pb2 as v2
from inference import grpc_service_pb2_grpc
from temporalio import activity
from temporalio.exceptions import ApplicationError
from volary.gateway.v1 import replica_pb2, replica_service_pb2, replica_service_pb2_grpc
from volary.registry.v1 import model_pb2, registry_service_pb2, registry_service_pb2_grpc
from volary_kit.channels import Channels
from volary_kit.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    Unavailable,
    VolaryError,
)

from volary_workflows.rollout.names import version_name
from volary_workflows.rollout.tasks import StagingReport, Subject
from volary_workflows.rollout.tensors import fits, outputs_of, request_of, rows_of, zeros_of

GOLDEN_ROWS = "golden_rows"
DEFAULT_TOLERANCE = 1e-4  # what inference itself allows between two runtimes
MOST_GOLDEN_BYTES = 16 << 20
MARK = (("volary-shadow", "true"),)
NO_SUCH_TENSOR = "volary_no_such_tensor"
NO_SUCH_VERSION = "9223372036854775807"


@dataclass(frozen=True)
class Golden:
    """Inputs and the outputs that they must give, as the version's attachment declares them."""

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    tolerance: float = DEFAULT_TOLERANCE

    @classmethod
    def read(cls, data: bytes) -> Golden:
        """Read the JSON document; raise ValueError when it is none."""
        document = json.loads(data)
        if not isinstance(document, dict) or not {"inputs", "outputs"} <= document.keys():
            raise ValueError("it has no inputs and outputs")
        tolerance = float(document.get("tolerance", DEFAULT_TOLERANCE))
        return cls(document["inputs"], document["outputs"], tolerance)


class StagingActivities:
    """The activity of the state STAGING, over channels to gateway, registry and the replicas."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self._replicas = replica_service_pb2_grpc.ReplicaServiceStub(channels.to("gateway"))
        self._registry = registry_service_pb2_grpc.RegistryServiceStub(channels.to("registry"))
        self._artifacts = registry_service_pb2_grpc.ArtifactServiceStub(channels.to("registry"))

    @activity.defn
    async def stage_version(self, subject: Subject) -> StagingReport:
        """Ask every replica; fails, to be tried again, while none holds the version ready."""
        name = version_name(subject)
        version = await self._registry.GetModelVersion(
            registry_service_pb2.GetModelVersionRequest(name=name)
        )
        golden, problems = await self._golden(version)
        replicas = await self._ready(subject)
        calls = 0
        for replica in replicas.values():
            check = Check(self._channels.at(replica.address), subject, version, golden)
            calls += await check.run()
            problems += [f"{replica.id}: {text}" for text in check.problems]
        if problems and replicas.keys() - (await self._ready(subject)).keys():
            raise _not_ready(subject)  # a replica began anew meanwhile: what it said is void
        return StagingReport(calls, problems)

    async def _ready(self, subject: Subject) -> dict[str, replica_pb2.Replica]:
        """Return the replicas that hold the version ready, by incarnation."""
        listed = await self._replicas.ListReplicas(
            replica_service_pb2.ListReplicasRequest(parent=f"projects/{subject.project}")
        )
        ready = [each for each in listed.replicas if each.attached and _holds(each, subject)]
        if not ready:
            raise _not_ready(subject)
        return {each.incarnation: each for each in ready}

    async def _golden(self, version: model_pb2.ModelVersion) -> tuple[Golden | None, list[str]]:
        digest = version.attachments.get(GOLDEN_ROWS, "")
        if not digest:
            return None, []
        try:
            return Golden.read(await self._bytes(digest)), []
        except (ValueError, TypeError):
            return None, ["golden rows: the attachment holds none that can be read"]

    async def _bytes(self, digest: str) -> bytes:
        request = registry_service_pb2.DownloadArtifactRequest(digest=digest)
        data = bytearray()
        async for part in self._artifacts.DownloadArtifact(request):
            data += part.chunk
            if len(data) > MOST_GOLDEN_BYTES:
                raise ValueError("too long")
        return bytes(data)


class Check:
    """The calls to one replica, and what was wrong with its answers."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        subject: Subject,
        version: model_pb2.ModelVersion,
        golden: Golden | None,
    ) -> None:
        self.problems: list[str] = []
        self._stub: Any = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
        self._subject = subject
        self._version = version
        self._golden = golden

    async def run(self) -> int:
        """Make every call; return how many that were. Raises what says nothing of the version."""
        checks: list[Callable[[], Awaitable[None]]] = [
            self._is_ready,
            self._has_its_signature,
            self._answers,
            self._refuses_an_unknown_tensor,
            self._refuses_an_unknown_version,
        ]
        for check in checks:
            try:
                await check()
            except (Unavailable, DeadlineExceeded):
                raise
            except VolaryError as error:
                self.problems.append(f"{_title(check)}: {error.reason} {error.message}")
        return len(checks)

    async def _is_ready(self) -> None:
        request = v2.ModelReadyRequest(name=self._subject.model, version=self._number)
        reply = await self._stub.ModelReady(request, metadata=MARK)
        self._require(reply.ready, "is ready", "it says that it is not")

    async def _has_its_signature(self) -> None:
        request = v2.ModelMetadataRequest(name=self._subject.model, version=self._number)
        reply = await self._stub.ModelMetadata(request, metadata=MARK)
        for side in ("inputs", "outputs"):
            declared = [_signature(spec) for spec in getattr(self._version, side)]
            served = [_signature(spec) for spec in getattr(reply, side)]
            text = f"{served} are served, {declared} are registered"
            self._require(not declared or sorted(served) == sorted(declared), side, text)

    async def _answers(self) -> None:
        arrays = self._inputs()
        if arrays is None:
            return
        request = request_of(
            self._subject.model, self._subject.version, arrays, self._version.inputs
        )
        reply = await self._stub.ModelInfer(request, metadata=MARK)
        digest = reply.parameters["volary_digest"].string_param
        self._require(digest == self._version.digest, "digest", f"{digest} answered")
        self._require(reply.model_version == self._number, "version", f"{reply.model_version}")
        self._judge_outputs(reply)

    def _inputs(self) -> dict[str, Any] | None:
        if self._golden is None:
            return zeros_of(self._version.inputs)
        try:
            return rows_of(self._golden.inputs, self._version.inputs)
        except (KeyError, ValueError, TypeError):
            self.problems.append("golden rows: they do not fit the version's inputs")
            return None

    def _judge_outputs(self, reply: v2.ModelInferResponse) -> None:
        try:
            outputs = outputs_of(reply)
        except (KeyError, ValueError):
            self.problems.append("answers: the reply's bytes and shapes disagree")
            return
        for spec in self._version.outputs:
            actual = outputs.get(spec.name)
            if actual is None or not fits(actual, spec):
                self.problems.append(f"answers: output {spec.name} is not as registered")
            elif actual.dtype.kind == "f" and not np.isfinite(actual).all():
                self.problems.append(f"answers: output {spec.name} is not finite")
            elif self._golden is not None and not self._is_golden(spec, actual, self._golden):
                self.problems.append(f"golden rows: output {spec.name} comes out differently")

    def _is_golden(self, spec: model_pb2.TensorSpec, actual: Any, golden: Golden) -> bool:
        if spec.name not in golden.outputs:
            return True
        expected = np.array(golden.outputs[spec.name], actual.dtype)
        return expected.shape == actual.shape and bool(
            np.allclose(actual, expected, rtol=0.0, atol=golden.tolerance)
        )

    async def _refuses_an_unknown_tensor(self) -> None:
        request = v2.ModelInferRequest(
            model_name=self._subject.model, model_version=self._number, id="staging"
        )
        request.inputs.add(name=NO_SUCH_TENSOR, datatype="FP32", shape=[1])
        request.raw_input_contents.append(bytes(4))
        await self._refused(request, InvalidArgument, "refuses an unknown tensor")

    async def _refuses_an_unknown_version(self) -> None:
        request = v2.ModelInferRequest(
            model_name=self._subject.model, model_version=NO_SUCH_VERSION, id="staging"
        )
        await self._refused(request, NotFound, "refuses an unknown version")

    async def _refused(
        self, request: v2.ModelInferRequest, kind: type[VolaryError], title: str
    ) -> None:
        try:
            await self._stub.ModelInfer(request, metadata=MARK)
        except kind:
            return
        self.problems.append(f"{title}: it answered")

    def _require(self, holds: bool, title: str, text: str) -> None:  # noqa: FBT001
        if not holds:
            self.problems.append(f"{title}: {text}")

    @property
    def _number(self) -> str:
        return str(self._subject.version)


def _not_ready(subject: Subject) -> ApplicationError:
    text = f"{version_name(subject)} is not held ready by the replicas that began with it"
    return ApplicationError(text, type="VERSION_NOT_READY")


def _holds(replica: replica_pb2.Replica, subject: Subject) -> bool:
    return any(
        (held.project, held.model, held.version)
        == (subject.project, subject.model, subject.version)
        and held.state == replica_pb2.VERSION_STATE_READY
        for held in replica.versions
    )


def _signature(spec: Any) -> tuple[str, str, tuple[int, ...]]:
    return spec.name, spec.datatype, tuple(spec.shape)


def _title(check: Callable[[], Awaitable[None]]) -> str:
    return check.__name__.strip("_").replace("_", " ")
