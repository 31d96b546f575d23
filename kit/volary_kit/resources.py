"""What the kit opens for a service before its `build`, and closes after it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import grpc
from prometheus_client import REGISTRY, CollectorRegistry
from redis.asyncio import Redis

from volary_kit.calls import Principal
from volary_kit.channels import Channels
from volary_kit.clock import Clock, SystemClock
from volary_kit.errors import Unauthenticated, Unavailable
from volary_kit.health import Health
from volary_kit.identity import Jwks, SigningKey, TokenSource, Verifier, never_revoked
from volary_kit.metrics import CallMetrics
from volary_kit.outgoing import MeshDress
from volary_kit.registration import Servicer
from volary_kit.revocations import Revocations
from volary_kit.rules.authentication import TokenVerifier
from volary_kit.server import (
    MAX_CALLS,
    STREAM_THREADS,
    UNARY_THREADS,
    Address,
    AioServer,
    Certificate,
    Ruling,
    SyncServer,
)
from volary_kit.settings import ServiceSettings, SettingsError, prefix_of
from volary_kit.streams import Publisher
from volary_kit.supervision import Work
from volary_kit.telemetry import Telemetry

if TYPE_CHECKING:  # slow to import, and a service without a database needs none of them
    from temporalio.client import Client

    from volary_kit.database import Database
    from volary_kit.idempotency import PostgresLedger
    from volary_kit.operations import Operations

SettingsT = TypeVar("SettingsT", bound=ServiceSettings)
REDIS_CONNECT_S = 2.0
NOT_PEERS = frozenset({"temporal_address"})


class NotConfigured(SettingsError):
    """A service was started without an engine that it cannot do without."""

    def __init__(self, service: str, key: str) -> None:
        super().__init__(f"set {prefix_of(service)}{key.upper()}: {service} does not run without")


class TemporalConnection:
    """The client of Temporal, connected when first asked for."""

    def __init__(self, address: str | None, namespace: str) -> None:
        self._address = address
        self._namespace = namespace
        self._lock = asyncio.Lock()
        self._client: Client | None = None

    async def __call__(self) -> Client:
        """Return the client; raise Unavailable when Temporal cannot be reached."""
        async with self._lock:
            if self._client is None:
                self._client = await self._connect()
            return self._client

    async def _connect(self) -> Client:
        if self._address is None:
            raise Unavailable("TEMPORAL_NOT_CONFIGURED", "this service has no Temporal address")
        from temporalio.client import Client
        from temporalio.contrib.opentelemetry import OpenTelemetryPlugin

        try:
            return await Client.connect(
                self._address,
                namespace=self._namespace,
                plugins=[OpenTelemetryPlugin(add_temporal_spans=True)],
            )
        except RuntimeError as error:
            raise Unavailable(
                "TEMPORAL_UNAVAILABLE", "Temporal cannot be reached", retry_after_s=1.0
            ) from error


class RefuseAll:
    """Verify nothing: no JWKS file is configured, so no credential can be valid."""

    def verify(self, token: str) -> Principal:  # noqa: ARG002
        raise Unauthenticated("NO_KEYS", "this process knows no keys: set its jwks_file")


@dataclass(frozen=True)
class Resources(Generic[SettingsT]):
    """What `build` gets: settings, clock, engines, channels, and makers of listeners."""

    service: str
    settings: SettingsT
    clock: Clock
    health: Health
    ruling: Ruling
    channels: Channels
    temporal: TemporalConnection
    telemetry: Telemetry
    database: Database | None = None
    redis: Redis | None = None
    registry: CollectorRegistry = field(default=REGISTRY)
    ledger: PostgresLedger | None = None
    operations: Operations | None = None

    def require_database(self) -> Database:
        """Return the database; raise NotConfigured when the settings name none."""
        if self.database is None:
            raise NotConfigured(self.service, "database_url")
        return self.database

    def require_redis(self) -> Redis:
        """Return Redis; raise NotConfigured when the settings name none."""
        if self.redis is None:
            raise NotConfigured(self.service, "redis_url")
        return self.redis

    def require_operations(self) -> Operations:
        """Return the long-running operations; raise NotConfigured without a database."""
        if self.operations is None:
            raise NotConfigured(self.service, "database_url")
        return self.operations

    def chores(self) -> list[Work]:
        """Return the background work of the kit's own parts: what the engines at hand need."""
        chores: list[Work] = []
        if self.ledger is not None:
            chores.append(self.ledger.run)
        if self.database is not None and self.redis is not None:
            from volary_kit.outbox import Relay

            chores.append(Relay(self.database, Publisher(self.redis)).run)
        if self.operations is not None and self.operations.has_handlers:
            chores.append(self.operations.run)
        return chores

    def operations_servicers(self) -> list[Servicer]:
        """Return `google.longrunning.Operations` where this service runs operations."""
        if self.operations is None or not self.operations.has_handlers:
            return []
        from volary_longrunning import operations_pb2_grpc

        from volary_kit.operations.handlers import OperationsHandler

        handler = OperationsHandler(self.operations)
        add = operations_pb2_grpc.add_OperationsServicer_to_server
        return [Servicer(add, handler, "google.longrunning.Operations")]

    def aio_server(self, servicers: Sequence[Servicer], *, port: int) -> AioServer:
        """Make a further asyncio listener on a port of its own."""
        return AioServer(servicers, self.ruling, self.health, address_of(self.settings, port))

    def sync_server(
        self,
        servicers: Sequence[Servicer],
        *,
        port: int,
        threads: int = UNARY_THREADS,
        streams: int = STREAM_THREADS,
        queue: int = MAX_CALLS,
        quick: Collection[str] = (),
        address: Address | None = None,
    ) -> SyncServer:
        """Make a thread-pool listener; see `SyncServer` for its threads and for `quick`.

        `address` is for one that is not reached by a port.
        """
        return SyncServer(
            servicers,
            self.ruling,
            self.health,
            address or address_of(self.settings, port),
            threads=threads,
            streams=streams,
            queue=queue,
            quick=quick,
        )


def address_of(settings: ServiceSettings, port: int) -> Address:
    """Return where a service listens, with its certificate where one is set."""
    certificate = None
    if settings.tls_cert_file is not None and settings.tls_key_file is not None:
        certificate = Certificate(
            settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file
        )
    return Address(settings.host, port, certificate)


def verifier_of(settings: ServiceSettings, clock: Clock) -> TokenVerifier:
    """Return what verifies credentials by the JWKS file and the list of revoked keys.

    Without a JWKS file it refuses all.
    """
    if settings.jwks_file is None:
        return RefuseAll()
    path = settings.revocations_file
    is_revoked = never_revoked if path is None else Revocations(path, clock)
    return Verifier(Jwks(settings.jwks_file, clock), clock, is_revoked)


def tokens_of(settings: ServiceSettings, service: str, clock: Clock) -> TokenSource | None:
    """Return what signs this service's tokens, None without a key; raise SettingsError."""
    path = settings.service_key_file
    if path is None:
        return None
    try:
        return TokenSource(SigningKey.read(path, kid=service), clock)
    except ValueError as error:
        raise SettingsError(f"{prefix_of(service)}SERVICE_KEY_FILE: {error}") from error


def peers_of(settings: ServiceSettings) -> dict[str, str | None]:
    """Return the addresses of the peers that the settings name, by peer."""
    names = [name for name in type(settings).model_fields if name.endswith("_address")]
    return {
        name.removesuffix("_address"): getattr(settings, name)
        for name in names
        if name not in NOT_PEERS
    }


def peer_credentials(service: str, ca_file: Path | None) -> grpc.ChannelCredentials | None:
    """Return TLS credentials for calls to peers, None for plain text; raise SettingsError."""
    if ca_file is None:
        return None
    try:
        return grpc.ssl_channel_credentials(root_certificates=ca_file.read_bytes())
    except OSError as error:
        key = f"{prefix_of(service)}PEER_CA_FILE"
        raise SettingsError(f"{key}: {ca_file} cannot be read: {error.strerror}") from error


@asynccontextmanager
async def opened(
    service: str, settings: SettingsT, clock: Clock | None = None
) -> AsyncIterator[Resources[SettingsT]]:
    """Open everything that the settings name; close it in the reverse order."""
    clock = clock or SystemClock()
    async with AsyncExitStack() as stack:
        telemetry = _telemetry(service, settings, stack)  # closed last: it flushes all the others
        database = _database(service, settings, stack)
        redis = _redis(settings, stack)
        ledger = _ledger(database, clock)
        verifier = verifier_of(settings, clock)
        ruling = Ruling(verifier, CallMetrics(), clock, telemetry, ledger)
        dress = MeshDress(tokens_of(settings, service, clock), telemetry)
        credentials = peer_credentials(service, settings.peer_ca_file)
        channels = Channels(service, peers_of(settings), dress, credentials)
        stack.push_async_callback(channels.close)
        temporal = TemporalConnection(settings.temporal_address, settings.temporal_namespace)
        yield Resources(
            service=service,
            settings=settings,
            clock=clock,
            health=Health(),
            ruling=ruling,
            channels=channels,
            temporal=temporal,
            telemetry=telemetry,
            database=database,
            redis=redis,
            ledger=ledger,
            operations=_operations(service, database, temporal, clock),
        )


def _telemetry(service: str, settings: ServiceSettings, stack: AsyncExitStack) -> Telemetry:
    telemetry = Telemetry(
        service,
        instance=settings.instance,
        endpoint=settings.otlp_endpoint,
        replay_safe=settings.temporal_address is not None,
    )
    telemetry.install()
    stack.callback(telemetry.close)
    return telemetry


def _database(service: str, settings: ServiceSettings, stack: AsyncExitStack) -> Database | None:
    if settings.database_url is None:
        return None
    from volary_kit.database import Database

    database = Database(settings.database_url, service)
    stack.push_async_callback(database.close)
    return database


def _ledger(database: Database | None, clock: Clock) -> PostgresLedger | None:
    if database is None:
        return None
    from volary_kit.idempotency import PostgresLedger

    return PostgresLedger(database, clock)


def _operations(
    service: str, database: Database | None, temporal: TemporalConnection, clock: Clock
) -> Operations | None:
    if database is None:
        return None
    from volary_kit.operations import Operations

    return Operations(service, database, temporal, clock)


def _redis(settings: ServiceSettings, stack: AsyncExitStack) -> Any:
    if settings.redis_url is None:
        return None
    redis = Redis.from_url(settings.redis_url, socket_connect_timeout=REDIS_CONNECT_S)
    stack.push_async_callback(redis.aclose)
    return redis
