"""Which service keeps which kind of document, and how it is asked for and told."""

from __future__ import annotations

import json
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct
from volary.features.v1 import feature_pb2, features_service_pb2
from volary.ingest.v1 import ingest_service_pb2, source_pb2
from volary.monitor.v1 import monitor_pb2, monitor_service_pb2
from volary.registry.v1 import model_pb2, registry_service_pb2
from volary.trainer.v1 import run_pb2, trainer_service_pb2
from volary_client import AsyncClient
from volary_kit.errors import NotFound

from volary_cli.projects.reading import Declaration


@dataclass(frozen=True)
class Stored:
    """What a service keeps now: its revision or version, and whether it is what is declared."""

    version: int
    is_same: bool


@dataclass(frozen=True)
class Owner:
    """How to read, check and write one kind; `check` changes nothing."""

    get: Callable[[AsyncClient, Declaration], Awaitable[Stored]]
    check: Callable[[AsyncClient, Declaration], Awaitable[None]]
    apply: Callable[[AsyncClient, Declaration], Awaitable[int]]

    async def find(self, client: AsyncClient, declaration: Declaration) -> Stored | None:
        """Return what is stored, None when there is nothing."""
        try:
            return await self.get(client, declaration)
        except NotFound:
            return None


def struct_of(data: dict[str, Any]) -> Struct:
    """Return a document as a Struct."""
    return json_format.Parse(json.dumps(data), Struct())


def _documented(
    get: Callable[[AsyncClient, str], Awaitable[Any]],
    apply: Callable[[AsyncClient, str, Struct, bool], Awaitable[Any]],
    collection: str,
    version: str,
) -> Owner:
    """Return the owner of a kind that is kept as its document."""

    async def read(client: AsyncClient, declared: Declaration) -> Stored:
        stored = await get(client, client.name(collection, declared.name))
        is_same = declared.is_same_as(json_format.MessageToDict(stored.document))
        return Stored(getattr(stored, version), is_same)

    async def send(client: AsyncClient, declared: Declaration, *, validate_only: bool) -> Any:
        name = client.name(collection, declared.name)
        return await apply(client, name, struct_of(declared.document.data), validate_only)

    async def check(client: AsyncClient, declared: Declaration) -> None:
        await send(client, declared, validate_only=True)

    async def write(client: AsyncClient, declared: Declaration) -> int:
        return getattr(await send(client, declared, validate_only=False), version)

    return Owner(read, check, write)


SOURCE = _documented(
    lambda client, name: client.ingest.GetSource(ingest_service_pb2.GetSourceRequest(name=name)),
    lambda client, name, document, validate_only: client.ingest.ApplySource(
        ingest_service_pb2.ApplySourceRequest(
            source=source_pb2.Source(name=name, document=document), validate_only=validate_only
        )
    ),
    "sources",
    "revision",
)
FEATURE_VIEW = _documented(
    lambda client, name: client.features.GetFeatureView(
        features_service_pb2.GetFeatureViewRequest(name=name)
    ),
    lambda client, name, document, validate_only: client.features.ApplyFeatureView(
        features_service_pb2.ApplyFeatureViewRequest(
            feature_view=feature_pb2.FeatureView(name=name, document=document),
            validate_only=validate_only,
        )
    ),
    "featureViews",
    "version",
)
FEATURE_SET = _documented(
    lambda client, name: client.features.GetFeatureSet(
        features_service_pb2.GetFeatureSetRequest(name=name)
    ),
    lambda client, name, document, validate_only: client.features.ApplyFeatureSet(
        features_service_pb2.ApplyFeatureSetRequest(
            feature_set=feature_pb2.FeatureSet(name=name, document=document),
            validate_only=validate_only,
        )
    ),
    "featureSets",
    "version",
)
TRAINING = _documented(
    lambda client, name: client.trainer.GetTraining(
        trainer_service_pb2.GetTrainingRequest(name=name)
    ),
    lambda client, name, document, validate_only: client.trainer.ApplyTraining(
        trainer_service_pb2.ApplyTrainingRequest(
            training=run_pb2.Training(name=name, document=document), validate_only=validate_only
        )
    ),
    "trainings",
    "version",
)
MONITOR = _documented(
    lambda client, name: client.monitor.GetMonitorPolicy(
        monitor_service_pb2.GetMonitorPolicyRequest(name=name)
    ),
    lambda client, name, document, validate_only: client.monitor.ApplyMonitorPolicy(
        monitor_service_pb2.ApplyMonitorPolicyRequest(
            monitor_policy=monitor_pb2.MonitorPolicy(name=name, document=document),
            validate_only=validate_only,
        )
    ),
    "monitorPolicies",
    "version",
)


def _model(client: AsyncClient, declared: Declaration, etag: str = "") -> model_pb2.Model:
    return model_pb2.Model(
        name=client.name("models", declared.name),
        description=str(declared.spec.get("description", "")),
        owner=declared.owner,
        on_call=declared.on_call,
        etag=etag,
    )


async def _stored_model(client: AsyncClient, declared: Declaration) -> model_pb2.Model:
    request = registry_service_pb2.GetModelRequest(name=client.name("models", declared.name))
    return await client.registry.GetModel(request)


async def _get_model(client: AsyncClient, declared: Declaration) -> Stored:
    stored, wanted = await _stored_model(client, declared), _model(client, declared)
    is_same = all(
        getattr(stored, field) == getattr(wanted, field)
        for field in ("description", "owner", "on_call")
    )
    return Stored(stored.latest_version, is_same)


async def _check_model(client: AsyncClient, declared: Declaration) -> None:
    """Nothing beyond the envelope, which is checked when it is read."""


async def _apply_model(client: AsyncClient, declared: Declaration) -> int:
    request_id = str(uuid.uuid4())
    try:
        stored = await _stored_model(client, declared)
    except NotFound:
        create = registry_service_pb2.CreateModelRequest(
            parent=f"projects/{client.project}",
            model_id=declared.name,
            model=_model(client, declared),
            request_id=request_id,
        )
        return (await client.registry.CreateModel(create)).latest_version
    update = registry_service_pb2.UpdateModelRequest(
        model=_model(client, declared, stored.etag), request_id=request_id
    )
    return (await client.registry.UpdateModel(update)).latest_version


MODEL = Owner(_get_model, _check_model, _apply_model)
OWNERS = {
    "Source": SOURCE,
    "FeatureView": FEATURE_VIEW,
    "FeatureSet": FEATURE_SET,
    "Model": MODEL,
    "Training": TRAINING,
    "Monitor": MONITOR,
}
