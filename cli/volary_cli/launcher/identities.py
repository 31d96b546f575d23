"""Key pairs of the mesh: one for each service, one that issues API keys, one JWKS file."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

from volary.gateway.v1 import identity_service_pb2, identity_service_pb2_grpc
from volary.policy.v1 import policy_pb2
from volary_kit.calls import DEFAULT_PROJECT
from volary_kit.channels import Channels
from volary_kit.clock import Clock
from volary_kit.errors import DeadlineExceeded, Unavailable
from volary_kit.identity import KEY_ISSUER, SERVICE_ISSUER, SigningKey, TokenSource, write_jwks
from volary_kit.outgoing import MeshDress

from volary_cli.launcher.folder import MeshFolder

LAUNCHER = "launcher"
ISSUER = "gateway-issuing"  # id of the key that signs API keys
DEVELOPER = "developer"
ROLES = (
    policy_pb2.ROLE_PREDICTOR,
    policy_pb2.ROLE_VIEWER,
    policy_pb2.ROLE_OPERATOR,
    policy_pb2.ROLE_APPROVER,
    policy_pb2.ROLE_ADMIN,
)
LIFE = timedelta(days=90)
RENEW_BEFORE = timedelta(days=1)
CALL_S = 10.0
PATIENCE_S = 30.0
AGAIN_S = 0.5


class Identities:
    """The keys below `folder.keys`."""

    def __init__(self, folder: MeshFolder) -> None:
        self._folder = folder

    def key_file(self, name: str) -> Path:
        """Return the PEM file of a private key."""
        return self._folder.keys / f"{name}.pem"

    def make(self, services: Iterable[str]) -> list[str]:
        """Make the keys that are missing, write the public half of all, return their ids."""
        issuers = dict.fromkeys((*services, LAUNCHER), SERVICE_ISSUER) | {ISSUER: KEY_ISSUER}
        jwks = [self.key(name).public_jwk(issuer) for name, issuer in sorted(issuers.items())]
        write_jwks(self._folder.jwks, jwks)
        return sorted(issuers)

    def key(self, name: str) -> SigningKey:
        """Return a private key, made on first use."""
        path = self.key_file(name)
        if not path.exists():
            SigningKey.generate(name).write(path)
        return SigningKey.read(path, name)

    async def ensure_api_key(self, gateway: str, clock: Clock) -> None:
        """Keep a development key in the folder; ask gateway for one when there is none."""
        known = self._folder.api_key()
        if known is None or _expiry_us(known) < clock.now_us() + _us(RENEW_BEFORE):
            token = await self._created(gateway, clock)
            self._folder.write_private(self._folder.api_key_file, token + "\n")

    async def _created(self, gateway: str, clock: Clock) -> str:
        """Ask until gateway has answered: it may lose its database for a moment."""
        give_up_s = clock.monotonic_s() + PATIENCE_S
        while True:
            try:
                return await self._create_api_key(gateway, clock)
            except (Unavailable, DeadlineExceeded):
                if clock.monotonic_s() > give_up_s:
                    raise
                await asyncio.sleep(AGAIN_S)

    async def _create_api_key(self, gateway: str, clock: Clock) -> str:
        request = identity_service_pb2.CreateApiKeyRequest(
            parent=f"projects/{DEFAULT_PROJECT}", principal_id=DEVELOPER, roles=ROLES
        )
        request.ttl.FromTimedelta(LIFE)
        dress = MeshDress(TokenSource(self.key(LAUNCHER), clock))
        channels = Channels(LAUNCHER, {"gateway": gateway}, dress)
        try:
            stub = identity_service_pb2_grpc.IdentityServiceStub(channels.to("gateway"))
            reply = await stub.CreateApiKey(request, timeout=CALL_S)
        finally:
            await channels.close()
        return reply.token


def _us(span: timedelta) -> int:
    return span // timedelta(microseconds=1)


def _expiry_us(token: str) -> int:
    """Return when a token ends, by its own word; 0 when it cannot be read."""
    with contextlib.suppress(ValueError, KeyError, IndexError):
        body = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        return int(claims["exp"]) * 1_000_000
    return 0
