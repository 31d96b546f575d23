"""Listeners: a grpc.aio server and a thread-pool server under the same rules.

Both refuse a host beyond loopback without TLS, refuse an RPC without a policy row, carry health
and reflection, and drain: NOT_SERVING, unbounded streams ended, GOAWAY, calls in flight finished.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import grpc

from volary_kit.adapters.aio import AioAdapter
from volary_kit.adapters.calling import PROBE
from volary_kit.adapters.polling import PollingThreads, Unary, is_possible
from volary_kit.adapters.sync import StreamThreads, SyncAdapter
from volary_kit.clock import Clock, SystemClock
from volary_kit.errors import Unimplemented
from volary_kit.health import Health, health_servicer
from volary_kit.metrics import CallMetrics
from volary_kit.policies import MIB, Policy, policies
from volary_kit.reflection import reflection_servicer
from volary_kit.registration import Method, Servicer, methods_of
from volary_kit.rules import Rule, Rules
from volary_kit.rules.authentication import Authentication, TokenVerifier
from volary_kit.rules.concurrency import Concurrency
from volary_kit.rules.deadline import Deadline
from volary_kit.rules.errors import ErrorLog
from volary_kit.rules.idempotency import ReplyLedger
from volary_kit.rules.metrics import Metrics
from volary_kit.rules.policy import Authorization
from volary_kit.rules.tracing import Tracer, Tracing
from volary_kit.rules.validation import Validation
from volary_kit.statuses import DETAILS_KEY, GRPC_CODES, status_of

MAX_CALLS = 1_000
MAX_STREAMS = 1_000
UNARY_THREADS = 16
STREAM_THREADS = 32
PROBE_THREADS = 2
LOOPBACK_NAMES = ("localhost",)
log = logging.getLogger(__name__)


class ListenError(Exception):
    """The process must not, or cannot, listen where it was told to."""


class Listener(Protocol):
    """Something that takes calls: `run` starts it, drains it and stops it."""

    async def start(self) -> None:
        """Begin to take calls."""
        ...

    async def stop(self, grace_s: float) -> None:
        """Take no new call, let those in flight finish within `grace_s`."""
        ...


@dataclass(frozen=True)
class Certificate:
    """PEM files of a server: its chain, its key, and the CA of client certificates, if any."""

    chain_file: Path
    key_file: Path
    client_ca_file: Path | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """Read the files; client certificates are required when a CA is named."""
        ca = None if self.client_ca_file is None else self.client_ca_file.read_bytes()
        pair = (self.key_file.read_bytes(), self.chain_file.read_bytes())
        return grpc.ssl_server_credentials([pair], ca, require_client_auth=ca is not None)


@dataclass(frozen=True)
class Address:
    """Where to listen; port 0 takes a free one."""

    host: str
    port: int
    certificate: Certificate | None = None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def require_safe(self) -> None:
        """Raise ListenError for a host beyond loopback without TLS."""
        if self.certificate is None and not is_loopback(self.host):
            raise ListenError(
                f"{self} is beyond loopback and has no TLS: set tls_cert_file and tls_key_file, "
                "or listen on 127.0.0.1"
            )


@dataclass(frozen=True)
class SocketFile(Address):
    """A Unix socket at the path `host`: its folder says who may reach it."""

    def __str__(self) -> str:
        return f"unix:{self.host}"

    def require_safe(self) -> None:
        """Never refuse: no other machine reaches a file."""


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches the host; a name other than localhost does not."""
    if host in LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Ruling:
    """What every listener of a process needs to hold its calls to the rules."""

    verifier: TokenVerifier
    metrics: CallMetrics
    clock: Clock = field(default_factory=SystemClock)
    tracer: Tracer | None = None
    ledger: ReplyLedger | None = None
    policies: Mapping[str, Policy] = field(default_factory=policies)
    max_calls: int = MAX_CALLS
    max_streams: int = MAX_STREAMS

    def rules(self) -> Rules:
        """Return the rules in their order; the limits are of one listener each."""
        tracing: list[Rule] = [] if self.tracer is None else [Tracing(self.tracer)]
        return Rules(
            [
                *tracing,
                Metrics(self.metrics),
                ErrorLog(),
                Concurrency(self.max_calls, self.max_streams),
                Deadline(),
                Authentication(self.verifier),
                Authorization(),
                Validation(),
            ]
        )


class AioServer:
    """A grpc.aio server."""

    def __init__(
        self, servicers: Sequence[Servicer], ruling: Ruling, health: Health, address: Address
    ) -> None:
        address.require_safe()
        self.address = address
        self.methods = _announced(servicers, ruling, health, is_aio=True)
        self._adapter = AioAdapter(ruling.rules(), ruling.clock, ruling.ledger)
        self._server = grpc.aio.server(options=server_options(self.methods))
        self._server.add_generic_rpc_handlers(_handlers(self.methods, self._adapter.handler))
        self._server.add_generic_rpc_handlers((_UnknownMethods(_refuse_unknown),))

    async def start(self) -> None:
        """Bind and begin to take calls; `address.port` is the real one afterwards."""
        self.address = _bound(self._server, self.address)
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """End unbounded streams, send GOAWAY, let calls in flight finish."""
        self._adapter.end_unbounded()
        await self._server.stop(grace_s)


class SyncServer:
    """A thread-pool server, for handlers that hold the interpreter anyway.

    `threads` answer unary calls; at most `streams` streams live on threads of their own. At
    most `queue` further calls wait for a thread, the next one is refused. A method of `quick` is
    answered by the thread that polls: its handler calls `waiting.about_to_wait` before it waits.
    """

    def __init__(
        self,
        servicers: Sequence[Servicer],
        ruling: Ruling,
        health: Health,
        address: Address,
        *,
        threads: int = UNARY_THREADS,
        streams: int = STREAM_THREADS,
        queue: int = MAX_CALLS,
        quick: Collection[str] = (),
    ) -> None:
        address.require_safe()
        self.address = address
        self.methods = _announced(servicers, ruling, health, is_aio=False)
        self._unary = ThreadPoolExecutor(threads, thread_name_prefix="unary")
        self._probes = ThreadPoolExecutor(PROBE_THREADS, thread_name_prefix="probe")
        self._streams = StreamThreads(streams)
        adapter = SyncAdapter(ruling.rules(), ruling.clock, self._streams, self._probes)
        self._server = grpc.server(
            self._unary,
            options=server_options(self.methods),
            maximum_concurrent_rpcs=threads + streams + queue,
        )
        self._server.add_generic_rpc_handlers(_handlers(self.methods, adapter.handler))
        self._server.add_generic_rpc_handlers((_UnknownMethods(_refuse_unknown_sync),))
        self._polling = _polling(self._server, self.methods, adapter, quick, threads)

    async def start(self) -> None:
        """Bind and begin to take calls; `address.port` is the real one afterwards."""
        self.address = _bound(self._server, self.address)
        if self._polling is None:
            self._server.start()
        else:
            self._polling.start()

    async def stop(self, grace_s: float) -> None:
        """Send GOAWAY, let calls in flight finish, give the threads back."""
        stopped = self._server.stop(grace_s)
        await asyncio.to_thread(stopped.wait)
        for pool in (self._unary, self._probes, self._streams.pool):
            pool.shutdown(wait=False, cancel_futures=True)


def _polling(
    server: grpc.Server,
    methods: Iterable[Method],
    adapter: SyncAdapter,
    quick: Collection[str],
    threads: int,
) -> PollingThreads | None:
    """Return the threads that answer unary calls, None where gRPC's own have to."""
    if not is_possible(server):
        log.warning("this version of gRPC keeps its threads to itself: calls take more CPU time")
        return None
    unary = {
        method.name: Unary(adapter.unary(method), method.name in quick)
        for method in methods
        if method.policy.is_unary and not method.name.startswith(PROBE)
    }
    return PollingThreads(server, unary, threads)


def server_options(methods: Iterable[Method]) -> list[tuple[str, Any]]:
    """Return gRPC's options: message sizes from the policy rows, keepalive for long streams."""
    largest = max(method.policy.max_request_bytes for method in methods)
    return [
        ("grpc.so_reuseport", 0),  # a port that is taken is an error, not a second listener
        # above every method's own limit, whose refusal has ErrorInfo; a bound for memory
        ("grpc.max_receive_message_length", largest + MIB),
        # what is above even that is refused at its first bytes: by itself gRPC keeps the refusal
        # back for a tenth of a second to a whole one
        ("grpc.http.tarpit", 0),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.max_concurrent_streams", 2_000),
    ]


def _announced(
    servicers: Sequence[Servicer], ruling: Ruling, health: Health, *, is_aio: bool
) -> list[Method]:
    health.add(servicer.service for servicer in servicers)
    every = [*servicers, health_servicer(health, is_aio=is_aio)]
    names = [servicer.service for servicer in every]
    every.append(reflection_servicer(names, is_aio=is_aio))
    return methods_of(every, ruling.policies)


def _handlers(
    methods: Iterable[Method], handler: Callable[[Method], grpc.RpcMethodHandler[Any, Any]]
) -> tuple[grpc.GenericRpcHandler, ...]:
    services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
    for method in methods:
        service, _, name = method.name[1:].partition("/")
        services.setdefault(service, {})[name] = handler(method)
    return tuple(
        grpc.method_handlers_generic_handler(service, handlers)
        for service, handlers in services.items()
    )


def _bound(server: Any, address: Address) -> Address:
    try:
        if address.certificate is None:
            port = server.add_insecure_port(str(address))
        else:
            port = server.add_secure_port(str(address), address.certificate.credentials())
    except RuntimeError as error:
        raise ListenError(f"cannot listen on {address}: the port is taken") from error
    except OSError as error:
        raise ListenError(f"cannot read {error.filename}: {error.strerror}") from error
    if port == 0:
        raise ListenError(f"cannot listen on {address}: the port is taken")
    return replace(address, port=port)


class _UnknownMethods(grpc.GenericRpcHandler):
    """Answer what no service registered, with ErrorInfo as every error has."""

    def __init__(self, refuse: Callable[[str], Callable[..., Any]]) -> None:
        self._refuse = refuse

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler[Any, Any]:
        return grpc.stream_stream_rpc_method_handler(self._refuse(handler_call_details.method))


def unknown(method: str) -> Unimplemented:
    """Return the error of a method that no service here has."""
    return Unimplemented("METHOD_UNKNOWN", "this process has no such method", {"method": method})


def _refuse_unknown(method: str) -> Callable[..., Any]:
    async def refuse(_requests: Any, context: Any) -> None:
        status = status_of(unknown(method))
        trailing = ((DETAILS_KEY, status.SerializeToString()),)
        await context.abort(GRPC_CODES[status.code], status.message, trailing)

    return refuse


def _refuse_unknown_sync(method: str) -> Callable[..., Any]:
    def refuse(_requests: Any, context: Any) -> None:
        status = status_of(unknown(method))
        context.set_trailing_metadata(((DETAILS_KEY, status.SerializeToString()),))
        context.abort(GRPC_CODES[status.code], status.message)

    return refuse
