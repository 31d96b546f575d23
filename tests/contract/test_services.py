"""What every service promises on the wire, held against it as a black box."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from google.protobuf.message import Message
from google.rpc import code_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from volary_kit.clock import SystemClock
from volary_kit.errors import (
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    VolaryError,
)
from volary_kit.identity import KEY_ISSUER, SigningKey, mint_api_key
from volary_kit.policies import policies

from tests.contract.bad_input import bad_requests
from tests.contract.conftest import Listener
from tests.contract.process import Keys, Running
from tests.contract.reflected import Rpc, call, services
from tests.contract.services import Contracted
from tests.contract.status import DOCUMENT, unimplemented

HEALTH = "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1.ServerReflection"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
CALL_S = 15.0  # for a machine that is busy with other tests; a quiet one needs milliseconds
STREAM_S = 0.3
SHORT_S, SLACK_S = 0.05, 2.0  # the slack is of two busy cores; a call that hangs takes longer
DRAIN_S = 60.0
CODE_NAMES = frozenset(code_pb2.Code.keys())
OUR_FAULT = (Internal, DataLoss, Cancelled)
LEAKS = ("Traceback", 'File "', "postgresql", "asyncpg", "sqlalchemy", "/site-packages", "redis://")
Listeners = list[Listener]


def each_rpc(listeners: Listeners, *, bounded: bool = False) -> list[tuple[Listener, Rpc]]:
    return [
        (listener, rpc)
        for listener in listeners
        for rpc in listener.rpcs
        if not (bounded and rpc.policy.unbounded)
    ]


def patience_s(rpc: Rpc, *, is_invalid: bool) -> float:
    """Return how long to wait: a stream may have nothing to say to a request that is valid."""
    return STREAM_S if rpc.policy.unbounded and not is_invalid else CALL_S


def problems(found: dict[str, str]) -> str:
    return "\n".join(f"{name}: {text}" for name, text in found.items())


def has_details(error: VolaryError) -> bool:
    """Say whether the status came with ErrorInfo: without it the reason is the code's name."""
    return error.reason not in CODE_NAMES


class TestHealth:
    def test_liveness_needs_no_credential(self, listeners: Listeners) -> None:
        for listener in listeners:
            stub: Any = health_pb2_grpc.HealthStub(listener.channel())
            reply = stub.Check(health_pb2.HealthCheckRequest(service="liveness"), timeout=CALL_S)
            assert reply.status == SERVING

    def test_readiness_is_of_the_process_and_of_each_service(self, listeners: Listeners) -> None:
        for listener in listeners:
            stub: Any = health_pb2_grpc.HealthStub(listener.channel())
            statuses = stub.List(health_pb2.HealthListRequest(), timeout=CALL_S).statuses  # pyright: ignore[reportAttributeAccessIssue]
            own = {rpc.name[1:].partition("/")[0] for rpc in listener.rpcs}
            assert {"", "readiness", "liveness"} | own - {HEALTH, REFLECTION} <= set(statuses)

    def test_an_unknown_service_is_not_found(self, listeners: Listeners) -> None:
        for listener in listeners:
            stub: Any = health_pb2_grpc.HealthStub(listener.channel())
            with pytest.raises(NotFound) as caught:
                stub.Check(health_pb2.HealthCheckRequest(service="no.such"), timeout=CALL_S)
            assert has_details(caught.value)

    def test_a_watch_begins_with_the_status(self, listeners: Listeners) -> None:
        for listener in listeners:
            stub: Any = health_pb2_grpc.HealthStub(listener.channel())
            watch = stub.Watch(health_pb2.HealthCheckRequest(service="liveness"), timeout=CALL_S)
            assert next(watch).status == SERVING
            watch.cancel()


class TestContract:
    def test_reflection_lists_what_is_served(self, listeners: Listeners) -> None:
        for listener in listeners:
            names = services(listener.channel(listener.keys.service_token()))
            assert {HEALTH, REFLECTION} < set(names)

    def test_every_rpc_has_a_row_of_its_own_shape(self, listeners: Listeners) -> None:
        for _, rpc in each_rpc(listeners):
            row = policies()[rpc.name]
            shape = (row.client_streaming, row.server_streaming)
            assert shape == (rpc.client_streaming, rpc.server_streaming), rpc.name
            assert row.allow, f"{rpc.name} allows nobody"
            assert row.unbounded or 0 < row.default_deadline_s <= row.max_deadline_s, rpc.name

    def test_an_unknown_method_is_unimplemented_with_details(self, listeners: Listeners) -> None:
        for listener in listeners:
            start: Any = listener.channel().unary_unary("/volary.no.v1.Such/Thing", None, None)
            with pytest.raises(Unimplemented) as caught:
                start(b"", timeout=CALL_S)
            assert has_details(caught.value)


class TestDenyByDefault:
    def test_no_credential_is_unauthenticated_on_every_rpc(self, listeners: Listeners) -> None:
        found: dict[str, str] = {}
        for listener, rpc in each_rpc(listeners):
            if rpc.policy.is_anonymous:
                continue
            error = call(listener.channel(), rpc, b"", CALL_S)
            if not isinstance(error, Unauthenticated) or not has_details(error):
                found[rpc.name] = repr(error)
        assert not found, problems(found)

    def test_a_role_outside_of_the_row_is_denied_on_every_rpc(self, listeners: Listeners) -> None:
        found: dict[str, str] = {}
        for listener, rpc in each_rpc(listeners):
            if rpc.policy.is_anonymous:
                continue
            error = call(listener.channel(listener.keys.api_key("stranger")), rpc, b"", CALL_S)
            if not isinstance(error, PermissionDenied) or not has_details(error):
                found[rpc.name] = repr(error)
        assert not found, problems(found)

    @pytest.mark.parametrize(
        "credential",
        [
            "",
            "garbage",
            "a.b.c",
            lambda keys: keys.api_key("operator", "admin", life_s=-60),
            lambda _: mint_api_key(
                SigningKey.generate("gateway-issuing"),
                "ann",
                ["admin"],
                life_s=60,
                clock=SystemClock(),
            ),
            lambda _: mint_api_key(
                SigningKey.generate(KEY_ISSUER), "ann", ["admin"], life_s=60, clock=SystemClock()
            ),
        ],
        ids=["empty", "garbage", "no token", "expired", "forged", "foreign key"],
    )
    def test_a_bad_credential_is_unauthenticated(
        self, listeners: Listeners, credential: str | Callable[[Any], str]
    ) -> None:
        for listener in listeners:
            token = credential if isinstance(credential, str) else credential(listener.keys)
            rpc = next(rpc for rpc in listener.rpcs if not rpc.policy.is_anonymous)
            error = call(listener.channel(token), rpc, b"", CALL_S)
            assert isinstance(error, Unauthenticated), (rpc.name, error)
            assert has_details(error)


class TestBadInput:
    def test_every_rpc_survives_what_no_caller_should_send(self, listeners: Listeners) -> None:
        found: dict[str, str] = {}
        for listener, rpc in each_rpc(listeners):
            for bad in bad_requests(rpc.request_type):
                began_s = time.monotonic()
                patience = patience_s(rpc, is_invalid=bad.is_invalid)
                error = call(listener.allowed_channel(rpc), rpc, bad.data, patience)
                text = verdict(rpc, error, is_invalid=bad.is_invalid)
                if text:
                    took_s = time.monotonic() - began_s
                    found[f"{rpc.name} <- {bad.kind}"] = f"{text} after {took_s:.2f} s"
        assert not found, problems(found)

    def test_a_huge_message_is_refused(self, listeners: Listeners) -> None:
        for listener, rpc in each_rpc(listeners, bounded=True):
            if rpc.client_streaming or rpc.policy.max_request_bytes > 8 << 20:
                continue
            data = b"\x7a" + b"\x80\x80\x80\x02" + b"x" * (4 << 20)  # field 15, 4 MiB
            error = call(listener.allowed_channel(rpc), rpc, data, CALL_S)
            is_unbuilt = isinstance(error, Unimplemented)
            assert is_unbuilt or isinstance(error, ResourceExhausted), (rpc.name, error)


def verdict(rpc: Rpc, error: VolaryError | None, *, is_invalid: bool) -> str:
    """Return what is wrong with an answer to a bad request, empty when nothing is."""
    if isinstance(error, Unimplemented):
        return "" if has_details(error) else f"no ErrorInfo: {error!r}"
    if is_invalid and not isinstance(error, InvalidArgument):
        return f"wanted INVALID_ARGUMENT, got {error!r}"
    if error is None:
        return ""
    if isinstance(error, DeadlineExceeded):
        # a stream that has nothing to say yet is no failure
        return "" if rpc.policy.unbounded else f"no answer: {error!r}"
    if isinstance(error, OUR_FAULT):
        return f"our own fault: {error!r} {error.metadata}"
    if not has_details(error):
        return f"no ErrorInfo: {error!r}"
    shown = f"{error} {error.metadata} {error.violations}"
    leaks = [leak for leak in LEAKS if leak in shown]
    return f"leaks {leaks}: {shown}" if leaks else ""


class TestDeadline:
    def test_no_call_outlives_its_deadline(self, listeners: Listeners) -> None:
        found: dict[str, str] = {}
        for listener, rpc in each_rpc(listeners, bounded=True):
            for bad in bad_requests(rpc.request_type):
                began_s = time.monotonic()
                call(listener.allowed_channel(rpc), rpc, bad.data, SHORT_S)
                took_s = time.monotonic() - began_s
                if took_s > SHORT_S + SLACK_S:
                    found[f"{rpc.name} <- {bad.kind}"] = f"{took_s:.2f} s"
        assert not found, problems(found)


class TestDrain:
    async def test_sigterm_tells_watchers_and_exits_0(
        self, running: Running, starting: Callable[[Contracted], Any]
    ) -> None:
        # a second process of the same service: the first one serves the other tests
        async with starting(running.service) as own:
            statuses = await asyncio.to_thread(watched_statuses, own)
        assert statuses[-1] == NOT_SERVING


def watched_statuses(own: Running) -> list[int]:
    """Return what a Watch saw from start to drain."""
    stub: Any = health_pb2_grpc.HealthStub(own.channel(own.addresses[0]))
    watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=DRAIN_S)
    seen = [next(watch).status]
    own.process.send_signal(signal.SIGTERM)
    with suppress(Unavailable):  # how a stream ends that the drain ends
        seen.extend(reply.status for reply in watch)
    assert own.process.wait(DRAIN_S) == 0, own.tail()
    return seen


def test_messages_are_walked(listeners: Listeners) -> None:
    """Hold the walk itself to account: it must have something to send to each RPC."""
    for _, rpc in each_rpc(listeners):
        assert issubclass(rpc.request_type, Message)
        assert len(list(bad_requests(rpc.request_type))) >= 6, rpc.name


def test_every_rpc_is_built_or_listed(
    running: Running, keys: Keys, listeners: Listeners, surveyed: dict[str, dict[str, bool]]
) -> None:
    """Hold the committed list against the process: `tests.contract.status --write` renews it."""
    assert listeners
    surveyed[running.service.name] = unimplemented(running, keys)
    listed = {line[3:-1] for line in DOCUMENT.read_text().splitlines() if line.startswith("- `/")}
    for name, is_unbuilt in surveyed[running.service.name].items():
        assert (name in listed) == is_unbuilt, f"{name}: docs/status.md is not up to date"
