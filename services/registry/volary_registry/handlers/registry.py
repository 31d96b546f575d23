"""`volary.registry.v1.RegistryService`."""

from __future__ import annotations

import hashlib
from typing import Any

import grpc
from google.protobuf.message import Message
from volary.registry.v1 import registry_service_pb2 as pb
from volary.registry.v1.model_pb2 import (
    APPROVAL_STATE_PENDING,
    Evaluation,
    Model,
    ModelVersion,
    Production,
)
from volary.registry.v1.registry_service_pb2_grpc import RegistryServiceServicer
from volary_kit import names
from volary_kit.artifacts import ArtifactStore
from volary_kit.calls import current_call
from volary_kit.clock import Clock
from volary_kit.database import Database, Transaction
from volary_kit.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from volary_kit.pages import cut, page_of
from volary_kit.timestamps import from_us

from volary_registry.domain.chain import Fact, Link, first_bad
from volary_registry.handlers import messages
from volary_registry.handlers.pipelines import Pipelines
from volary_registry.handlers.production import production_of
from volary_registry.store import artifacts, audit, deployments, evaluations, models, versions

Context = grpc.aio.ServicerContext[Any, Any]
MODEL = "projects/{project}/models/{model}"
VERSION = f"{MODEL}/versions/{{version}}"
EVALUATION = f"{MODEL}/evaluations/{{evaluation}}"


class RegistryHandler(RegistryServiceServicer):
    """Models, versions, verdicts, deployments, on Postgres."""

    def __init__(self, database: Database, files: ArtifactStore, clock: Clock) -> None:
        self._database = database
        self._pipelines = Pipelines(database, files, clock)
        self._clock = clock

    async def CreateModel(self, request: pb.CreateModelRequest, context: Context) -> Model:
        project = names.project_of(request.parent)
        _require_owner(request.model)
        async with self._database.transaction() as transaction:
            is_new = await models.add(
                transaction,
                project=project,
                model=request.model_id,
                description=request.model.description,
                owner=request.model.owner,
                on_call=request.model.on_call,
                create_us=self._clock.now_us(),
            )
            if not is_new:
                metadata = {"model": request.model_id}
                raise AlreadyExists("MODEL_EXISTS", f"model {request.model_id} exists", metadata)
            row = await models.get(transaction, project, request.model_id)
            model = messages.model_of(row)
            await self._audit(transaction, project, "model.create", model.name, request)
        return model

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> Model:
        ids = names.parse(MODEL, request.name, field="name")
        async with self._database.read() as transaction:
            return messages.model_of(await models.get(transaction, **ids))

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        project, page = names.project_of(request.parent), page_of(request, str)
        async with self._database.read() as transaction:
            rows = await models.page(transaction, project, page)
        shown, token = cut(rows, page, lambda row: row.model)
        return pb.ListModelsResponse(models=map(messages.model_of, shown), next_page_token=token)

    async def UpdateModel(self, request: pb.UpdateModelRequest, context: Context) -> Model:
        ids = names.parse(MODEL, request.model.name, field="model.name")
        _require_owner(request.model)
        revision = int(request.model.etag) if request.model.etag.isdecimal() else None
        if request.model.etag and revision is None:
            raise _stale(request.model.name)
        async with self._database.transaction() as transaction:
            await models.get(transaction, **ids)
            row = await models.update(
                transaction,
                **ids,
                revision=revision,
                description=request.model.description,
                owner=request.model.owner,
                on_call=request.model.on_call,
            )
            if row is None:
                raise _stale(request.model.name)
            await self._audit(
                transaction, ids["project"], "model.update", request.model.name, request
            )
        return messages.model_of(row)

    async def CreateModelVersion(
        self, request: pb.CreateModelVersionRequest, context: Context
    ) -> ModelVersion:
        ids = names.parse(MODEL, request.parent, field="parent")
        asked = ModelVersion()
        asked.CopyFrom(request.model_version)
        if asked.HasField("pipeline"):
            await self._pipelines.fill(asked)
        async with self._database.transaction() as transaction:
            await self._require_artifacts(transaction, asked)
            number = await models.next_version(transaction, **ids)
            version = self._new_version(asked, request.parent, number)
            await versions.add(
                transaction,
                **ids,
                version=number,
                digest=version.digest,
                body=version.SerializeToString(),
                approval_state=APPROVAL_STATE_PENDING,
            )
            await self._audit(
                transaction, ids["project"], "model_version.create", version.name, request
            )
            row = await versions.get(transaction, **ids, version=number)
        return messages.version_of(row)

    async def GetModelVersion(
        self, request: pb.GetModelVersionRequest, context: Context
    ) -> ModelVersion:
        ids = names.parse(VERSION, request.name, field="name")
        project, model = ids["project"], ids["model"]
        async with self._database.read() as transaction:
            number = await self._number(transaction, project, model, ids["version"])
            return messages.version_of(await versions.get(transaction, project, model, number))

    async def ListModelVersions(
        self, request: pb.ListModelVersionsRequest, context: Context
    ) -> pb.ListModelVersionsResponse:
        ids, page = names.parse(MODEL, request.parent, field="parent"), page_of(request, int)
        async with self._database.read() as transaction:
            rows = await versions.page(transaction, **ids, page=page)
        shown, token = cut(rows, page, lambda row: row.version)
        return pb.ListModelVersionsResponse(
            model_versions=map(messages.version_of, shown), next_page_token=token
        )

    async def DecideApproval(
        self, request: pb.DecideApprovalRequest, context: Context
    ) -> ModelVersion:
        ids = names.parse(VERSION, request.name, field="name")
        project, model = ids["project"], ids["model"]
        call = current_call()
        async with self._database.transaction() as transaction:
            number = await self._number(transaction, project, model, ids["version"])
            await versions.get(transaction, project, model, number)
            is_service = "service" in call.principal.roles
            row = await versions.decide(
                transaction,
                project,
                model,
                number,
                approval_state=request.state,
                approval_principal=(request.principal if is_service else "") or _who(),
                approval_comment=request.comment,
                approval_us=self._clock.now_us(),
            )
            assert row is not None
            await self._audit(transaction, project, "model_version.decide", request.name, request)
        return messages.version_of(row)

    async def CreateEvaluation(
        self, request: pb.CreateEvaluationRequest, context: Context
    ) -> Evaluation:
        ids = names.parse(MODEL, request.parent, field="parent")
        evaluation = Evaluation()
        evaluation.CopyFrom(request.evaluation)
        evaluation.name = f"{request.parent}/evaluations/{request.evaluation_id}"
        evaluation.create_time.CopyFrom(from_us(self._clock.now_us()))
        async with self._database.transaction() as transaction:
            await models.get(transaction, **ids)
            is_new = await evaluations.add(
                transaction,
                **ids,
                evaluation=request.evaluation_id,
                kind=evaluation.kind,
                candidate_version=evaluation.candidate_version,
                rollout=evaluation.rollout,
                body=evaluation.SerializeToString(),
            )
            if is_new:
                await self._audit(
                    transaction, ids["project"], "evaluation.create", evaluation.name, request
                )
            row = await evaluations.get(transaction, **ids, evaluation=request.evaluation_id)
        return messages.evaluation_of(row)

    async def GetEvaluation(self, request: pb.GetEvaluationRequest, context: Context) -> Evaluation:
        ids = names.parse(EVALUATION, request.name, field="name")
        async with self._database.read() as transaction:
            return messages.evaluation_of(await evaluations.get(transaction, **ids))

    async def ListEvaluations(
        self, request: pb.ListEvaluationsRequest, context: Context
    ) -> pb.ListEvaluationsResponse:
        ids, page = names.parse(MODEL, request.parent, field="parent"), page_of(request, int)
        async with self._database.read() as transaction:
            rows = await evaluations.page(transaction, **ids, rollout=request.rollout, page=page)
        shown, token = cut(rows, page, lambda row: row.position)
        return pb.ListEvaluationsResponse(
            evaluations=map(messages.evaluation_of, shown), next_page_token=token
        )

    async def ListDeployments(
        self, request: pb.ListDeploymentsRequest, context: Context
    ) -> pb.ListDeploymentsResponse:
        ids, page = names.parse(MODEL, request.parent, field="parent"), page_of(request, int)
        async with self._database.read() as transaction:
            rows = await deployments.page(transaction, **ids, page=page)
        shown, token = cut(rows, page, lambda row: row.generation)
        return pb.ListDeploymentsResponse(
            deployments=map(messages.deployment_of, shown), next_page_token=token
        )

    async def GetProduction(self, request: pb.GetProductionRequest, context: Context) -> Production:
        ids = names.parse(MODEL, request.model, field="model")
        async with self._database.read() as transaction:
            row = await models.get(transaction, **ids)
            if not row.production_version:
                metadata = {"model": ids["model"]}
                raise NotFound(
                    "NOTHING_IN_PRODUCTION", f"{ids['model']} has nothing in production", metadata
                )
            return await production_of(transaction, row)

    async def ListProduction(
        self, request: pb.ListProductionRequest, context: Context
    ) -> pb.ListProductionResponse:
        project, page = names.project_of(request.parent), page_of(request, str)
        async with self._database.read() as transaction:
            shown, token = cut(
                await models.page(transaction, project, page), page, lambda row: row.model
            )
            found = [await production_of(transaction, r) for r in shown if r.production_version]
        return pb.ListProductionResponse(production=found, next_page_token=token)

    async def VerifyAudit(
        self, request: pb.VerifyAuditRequest, context: Context
    ) -> pb.VerifyAuditResponse:
        project = names.project_of(request.parent)
        chain: list[Link] = []
        async with self._database.read() as transaction:
            async for batch in audit.links(transaction, project):
                chain.extend(batch)
        checked, bad = first_bad(chain)
        return pb.VerifyAuditResponse(
            checked=checked, first_bad=None if bad is None else messages.audit_of(bad)
        )

    def _new_version(self, version: ModelVersion, parent: str, number: int) -> ModelVersion:
        version.ClearField("approval")
        version.name, version.version = f"{parent}/versions/{number}", number
        version.creator = _who()
        version.create_time.CopyFrom(from_us(self._clock.now_us()))
        return version

    async def _require_artifacts(self, transaction: Transaction, version: ModelVersion) -> None:
        for field, digest in [("digest", version.digest), *version.attachments.items()]:
            if await artifacts.find(transaction, digest) is None:
                raise FailedPrecondition(
                    "ARTIFACT_NOT_FOUND",
                    f"{field} names an artifact that is not stored",
                    {"digest": digest},
                    field=f"model_version.{field}",
                )

    async def _number(self, transaction: Transaction, project: str, model: str, text: str) -> int:
        if text in ("latest", "production"):
            row = await models.get(transaction, project, model)
            return int(row.latest_version if text == "latest" else row.production_version)
        if not text.isdecimal() or len(text) > len(str(2**63)) - 1:
            raise InvalidArgument(
                "VERSION_MALFORMED", "a version is a number, latest or production", field="name"
            )
        return int(text)

    async def _audit(
        self, transaction: Transaction, project: str, action: str, resource: str, request: Message
    ) -> None:
        digest = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
        fact = Fact(action, resource, _who(), self._clock.now_us(), digest)
        await audit.append(transaction, project, fact)


def _who() -> str:
    principal = current_call().principal
    return principal.on_behalf_of or principal.subject


def _require_owner(model: Model) -> None:
    for field in ("owner", "on_call"):
        if not getattr(model, field).strip():
            raise InvalidArgument(
                "OWNER_REQUIRED", f"a model names its {field}", field=f"model.{field}"
            )


def _stale(name: str) -> Aborted:
    return Aborted("ETAG_MISMATCH", f"{name} has changed since; read it again", {"resource": name})
