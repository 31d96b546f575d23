"""`volary.gateway.v1.IdentityService`."""

from __future__ import annotations

import hashlib
import secrets

from volary.gateway.v1 import identity_pb2, identity_service_pb2, identity_service_pb2_grpc
from volary.policy.v1 import policy_pb2
from volary_kit.calls import current_call
from volary_kit.clock import Clock
from volary_kit.database import Database
from volary_kit.errors import FailedPrecondition, InvalidArgument
from volary_kit.identity import SigningKey, mint_api_key
from volary_kit.names import parse, project_of
from volary_kit.timestamps import MICROS, duration_us, from_us

from volary_gateway.controller import Controller
from volary_gateway.domain.identity import DEFAULT_LIFE_US, ApiKey, Project, require_may_issue
from volary_gateway.handlers import Context
from volary_gateway.handlers.names import KEY
from volary_gateway.store import identity as rows

PAGE = 100
PREFIX = "ROLE_"


class IdentityHandler(identity_service_pb2_grpc.IdentityServiceServicer):
    """Manage who may call."""

    def __init__(
        self,
        database: Database,
        signing: SigningKey | None,
        controller: Controller,
        clock: Clock,
    ) -> None:
        self._database = database
        self._signing = signing
        self._controller = controller
        self._clock = clock

    async def CreateProject(
        self, request: identity_service_pb2.CreateProjectRequest, context: Context
    ) -> identity_pb2.Project:
        project = Project(request.project_id, request.project.display_name, self._clock.now_us())
        async with self._database.transaction() as transaction:
            await rows.add_project(transaction, project)
        return identity_pb2.Project(
            name=f"projects/{project.id}",
            display_name=project.display_name,
            create_time=from_us(project.created_us),
        )

    async def CreateApiKey(
        self, request: identity_service_pb2.CreateApiKeyRequest, context: Context
    ) -> identity_pb2.ApiKey:
        project = project_of(request.parent)
        require_may_issue(current_call().principal.subject)
        life_us = duration_us(request.ttl) if request.HasField("ttl") else DEFAULT_LIFE_US
        key_id, created_us = secrets.token_hex(16), self._clock.now_us()
        roles = tuple(_role_name(role) for role in request.roles)
        token = mint_api_key(
            self._issuing_key(),
            request.principal_id,
            roles,
            project=project,
            life_s=life_us / MICROS,
            clock=self._clock,
            key_id=key_id,
        )
        key = ApiKey(
            id=key_id,
            project=project,
            principal=request.principal_id,
            roles=roles,
            token_hash=hashlib.sha256(token.encode()).digest(),
            created_us=created_us,
            expires_us=created_us + life_us,
        )
        async with self._database.transaction() as transaction:
            await rows.add_key(transaction, key)
        return _to_proto(key, token)

    async def ListApiKeys(
        self, request: identity_service_pb2.ListApiKeysRequest, context: Context
    ) -> identity_service_pb2.ListApiKeysResponse:
        project, size = project_of(request.parent), request.page_size or PAGE
        async with self._database.read() as transaction:
            keys = await rows.keys_of(transaction, project, _after(request.page_token), size + 1)
        page = keys[:size]
        return identity_service_pb2.ListApiKeysResponse(
            api_keys=[_to_proto(key) for key in page],
            next_page_token=_token(page[-1]) if len(keys) > size else "",
        )

    async def RevokeApiKey(
        self, request: identity_service_pb2.RevokeApiKeyRequest, context: Context
    ) -> identity_pb2.ApiKey:
        ids = parse(KEY, request.name, field="name")
        async with self._database.transaction() as transaction:
            key = await rows.revoke(transaction, ids["project"], ids["key"], self._clock.now_us())
        await self._controller.refresh_revoked()
        return _to_proto(key)

    def _issuing_key(self) -> SigningKey:
        if self._signing is None:
            raise FailedPrecondition(
                "NO_ISSUING_KEY", "this gateway issues no keys: set its issuing_key_file"
            )
        return self._signing


def _role_name(role: policy_pb2.Role.ValueType) -> str:
    return policy_pb2.Role.Name(role).removeprefix(PREFIX).lower()


def _token(key: ApiKey) -> str:
    return f"{key.created_us}.{key.id}"


def _after(page_token: str) -> tuple[int, str]:
    created_us, _, key_id = page_token.partition(".")
    if page_token and not (created_us.isascii() and created_us.isdigit() and key_id):
        raise InvalidArgument(
            "PAGE_TOKEN_INVALID", "the page token is not ours", field="page_token"
        )
    return int(created_us or 0), key_id


def _to_proto(key: ApiKey, token: str = "") -> identity_pb2.ApiKey:
    reply = identity_pb2.ApiKey(
        name=f"projects/{key.project}/apiKeys/{key.id}",
        principal=f"projects/{key.project}/principals/{key.principal}",
        roles=[policy_pb2.Role.Value(PREFIX + role.upper()) for role in key.roles],
        create_time=from_us(key.created_us),
        expire_time=from_us(key.expires_us),
        token=token,
    )
    if key.revoked_us is not None:
        reply.revoke_time.CopyFrom(from_us(key.revoked_us))
    return reply
