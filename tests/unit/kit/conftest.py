"""A service of four shapes, made of descriptors at run time: the contract has none to spare."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from prometheus_client import CollectorRegistry
from volary_kit.calls import current_call
from volary_kit.clock import SystemClock
from volary_kit.errors import NotFound, Unavailable, VolaryError
from volary_kit.health import Health
from volary_kit.identity import (
    KEY_ISSUER,
    Jwks,
    SigningKey,
    Verifier,
    mint_api_key,
    write_jwks,
)
from volary_kit.metrics import CallMetrics
from volary_kit.policies import Policy, policies
from volary_kit.registration import Servicer
from volary_kit.server import Address, AioServer, Ruling, SyncServer

SERVICE = "volary.test.v1.ShapesService"
SHAPES = {"Unary": (False, False), "Up": (True, False), "Down": (False, True), "Both": (True, True)}
EXTRA = {"Missing": (False, False), "Forever": (False, True)}
STRING = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
DOUBLE = descriptor_pb2.FieldDescriptorProto.TYPE_DOUBLE


def _shapes_types() -> tuple[Any, Any]:
    pool: Any = descriptor_pool.Default()
    try:
        service = pool.FindServiceByName(SERVICE)
    except KeyError:
        file = descriptor_pb2.FileDescriptorProto(
            name="volary/test/v1/shapes.proto", package="volary.test.v1", syntax="proto3"
        )
        for name in ("Ask", "Answer"):
            message = file.message_type.add(name=name)
            for number, (label, kind) in enumerate((("text", STRING), ("number", DOUBLE)), 1):
                message.field.add(name=label, number=number, type=kind, label=1)
        methods = file.service.add(name="ShapesService").method
        for name, (up, down) in (SHAPES | EXTRA).items():
            methods.add(
                name=name,
                input_type=".volary.test.v1.Ask",
                output_type=".volary.test.v1.Answer",
                client_streaming=up,
                server_streaming=down,
            )
        pool.AddSerializedFile(file.SerializeToString())
        service = pool.FindServiceByName(SERVICE)
    method = service.methods_by_name["Unary"]
    return (
        message_factory.GetMessageClass(method.input_type),
        message_factory.GetMessageClass(method.output_type),
    )


Ask, Answer = _shapes_types()


def row(name: str, **changes: Any) -> Policy:
    up, down = (SHAPES | EXTRA)[name]
    policy = Policy(
        method=f"/{SERVICE}/{name}",
        allow=frozenset({"operator"}),
        default_deadline_s=5,
        max_deadline_s=10,
        unbounded=name == "Forever",
        idempotency="read",
        max_request_bytes=1 << 20,
        client_streaming=up,
        server_streaming=down,
    )
    return replace(policy, **changes)


def rows(**changes: Any) -> dict[str, Policy]:
    own = {f"/{SERVICE}/{name}": row(name, **changes) for name in SHAPES | EXTRA}
    return policies() | own


def behave(request: Any) -> Any:
    """Do what the text asks for: the behaviours that the rules must survive."""
    if request.text == "not found":
        raise NotFound("BIRD_NOT_FOUND", "no such bird", {"bird": "7"})
    if request.text == "crash":
        raise RuntimeError("secret: postgres://user:password@host")
    if request.text == "wrong type":
        return "not a message"
    if request.text == "who":
        return Answer(text=f"{current_call().principal.subject} {current_call().project}")
    if request.text == "remaining":
        return Answer(number=current_call().remaining_s())
    return Answer(text=request.text, number=request.number)


class Attempts:
    """Refuse the first calls of each text with UNAVAILABLE, and remember what came."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.seen: list[str] = []

    def note(self, text: str) -> None:
        self.seen.append(text)
        if len(self.seen) <= self.failures:
            raise Unavailable("AWAY", "away")


class _Generated:
    """Stands where the generated base servicer does."""

    def Missing(self, request: Any, context: Any) -> None:
        raise NotImplementedError


_Generated.Missing.__module__ = "volary.test.v1.shapes_pb2_grpc"


class AioShapes(_Generated):
    def __init__(self) -> None:
        self.ended: list[str] = []
        self.attempts = Attempts(0)

    async def Unary(self, request: Any, context: Any) -> Any:
        self.attempts.note(request.text)
        if request.text == "slow":
            await asyncio.sleep(60)
        return behave(request)

    async def Up(self, requests: AsyncIterator[Any], context: Any) -> Any:
        texts = [behave(request).text async for request in requests]
        return Answer(text=",".join(texts))

    async def Down(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield Answer(text="first")
        if request.text == "slow":
            await asyncio.sleep(60)
        yield behave(request)

    async def Both(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        # as a handler that reads in a task of its own might: what ends the requests is lost
        taken: list[Any] = []
        with suppress(VolaryError):
            async for request in requests:
                taken.append(request)  # noqa: PERF401 - what came before a failure is kept
        for request in taken:
            yield behave(request)

    async def Forever(self, request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            yield Answer(text="on")
            await asyncio.Event().wait()
        finally:
            self.ended.append("forever")


class SyncShapes(_Generated):
    def __init__(self) -> None:
        self.attempts = Attempts(0)

    def Unary(self, request: Any, context: Any) -> Any:
        self.attempts.note(request.text)
        if request.text == "slow":
            _hold(context)
        return behave(request)

    def Up(self, requests: Iterator[Any], context: Any) -> Any:
        return Answer(text=",".join(behave(request).text for request in requests))

    def Down(self, request: Any, context: Any) -> Iterator[Any]:
        yield Answer(text="first")
        yield behave(request)

    def Both(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        taken: list[Any] = []
        with suppress(VolaryError):
            taken.extend(requests)
        for request in taken:
            yield behave(request)

    def Forever(self, request: Any, context: Any) -> Iterator[Any]:
        yield Answer(text="on")
        _hold(context)


def _hold(context: Any) -> None:
    """Occupy the thread until the caller goes away."""
    until_s = time.monotonic() + 30
    while context.is_active() and time.monotonic() < until_s:
        time.sleep(0.01)


def _add(handler: Any, server: Any) -> None:
    makers = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    handlers = {
        name: makers[shape](getattr(handler, name)) for name, shape in (SHAPES | EXTRA).items()
    }
    server.add_registered_method_handlers(SERVICE, handlers)


def shapes(handler: Any) -> Servicer:
    return Servicer(_add, handler, SERVICE)


@dataclass
class Rig:
    """A running server, its health, and keys for its callers."""

    server: AioServer | SyncServer
    health: Health
    handler: Any
    key: SigningKey
    metrics: CallMetrics
    registry: CollectorRegistry
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    @property
    def address(self) -> str:
        return str(self.server.address)

    def credential(self, *roles: str, project: str = "default", life_s: float = 600) -> str:
        return mint_api_key(
            self.key, "ann", roles or ("operator",), project=project, life_s=life_s,
            clock=SystemClock(),
        )  # fmt: skip


@asynccontextmanager
async def serving(folder: Path, kind: str, **options: Any) -> AsyncIterator[Rig]:
    key = SigningKey.generate("gateway-1")
    write_jwks(folder / "jwks.json", [key.public_jwk(KEY_ISSUER)])
    clock, registry = SystemClock(), CollectorRegistry()
    ruling = Ruling(
        verifier=Verifier(Jwks(folder / "jwks.json", clock), clock),
        metrics=CallMetrics(registry),
        policies=options.pop("policies", None) or rows(),
        **{key: options.pop(key) for key in ("max_calls", "max_streams") if key in options},
    )
    health = Health()
    health.set_ready(True)
    address = Address("127.0.0.1", 0)
    handler: Any
    if kind == "aio":
        handler = AioShapes()
        server: AioServer | SyncServer = AioServer([shapes(handler)], ruling, health, address)
    else:
        handler = SyncShapes()
        server = SyncServer([shapes(handler)], ruling, health, address, **options)
    await server.start()
    try:
        yield Rig(server, health, handler, key, ruling.metrics, registry)
    finally:
        await server.stop(0)


@pytest.fixture(params=["aio", "sync"])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    async with serving(tmp_path, request.param) as running:
        yield running


@pytest.fixture
def start_server(tmp_path: Path) -> Any:
    """`async with start_server("sync", threads=2) as rig`."""
    return lambda kind, **options: serving(tmp_path, kind, **options)


@pytest.fixture
def policy_rows() -> Any:
    """`policy_rows(max_request_bytes=10)` is the contract's rows and those of the shapes."""
    return rows


@pytest.fixture
def one_row() -> Any:
    """`one_row("Unary", unbounded=True)` is the row of one shape."""
    return row


@pytest.fixture
def shapes_servicer() -> Any:
    """Return the servicer of a handler."""
    return shapes
