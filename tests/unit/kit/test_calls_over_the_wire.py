"""What a caller sees of the rules: both servers, all four shapes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory
from volary_kit.client import connect, connect_aio
from volary_kit.errors import (
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
from volary_kit.outgoing.retry import NO_RETRY
from volary_kit.testing import eventually

SERVICE = "volary.test.v1.ShapesService"
SHAPES = ("Unary", "Up", "Down", "Both")


def types() -> tuple[Any, Any]:
    method: Any = descriptor_pool.Default().FindMethodByName(f"{SERVICE}.Unary")
    found = message_factory.GetMessageClass
    return found(method.input_type), found(method.output_type)


class Caller:
    """Call any shape, with bytes or text, through the kit's blocking or asyncio channel.

    Errors of streams are asked for through the blocking one: grpc.aio loses the status of a
    stream that is ended while it writes.
    """

    def __init__(self, address: str, credential: str | None) -> None:
        self.channel = connect_aio(address, credential, retry=NO_RETRY)
        self.blocking = connect(address, credential, retry=NO_RETRY)
        self.Ask, self.Answer = types()

    def start(self, name: str, data: bytes, timeout_s: float | None = 5) -> Any:
        """Start an asyncio call of a shape whose requests do not stream."""
        streams = name in ("Down", "Forever")
        make = self.channel.unary_stream if streams else self.channel.unary_unary
        call: Any = make(f"/{SERVICE}/{name}", None, self.Answer.FromString)
        return call(data, timeout=timeout_s)

    async def raw(self, name: str, data: bytes, timeout_s: float | None = 5) -> list[Any]:
        return await asyncio.to_thread(self._raw, name, data, timeout_s)

    def _raw(self, name: str, data: bytes, timeout_s: float | None) -> list[Any]:
        shapes = {"Up": "stream_unary", "Both": "stream_stream"}
        streams = {"Down": "unary_stream", "Forever": "unary_stream"}
        make = getattr(self.blocking, (shapes | streams).get(name, "unary_unary"))
        call = make(f"/{SERVICE}/{name}", None, self.Answer.FromString)
        reply = call(iter([data]) if name in shapes else data, timeout=timeout_s)
        return list(reply) if name in ("Down", "Both", "Forever") else [reply]

    async def ask(self, name: str, text: str, number: float = 0.0, **more: Any) -> list[Any]:
        request = self.Ask(text=text, number=number)
        return await self.raw(name, request.SerializeToString(), **more)

    async def close(self) -> None:
        await self.channel.close()
        self.blocking.close()


@pytest.fixture
async def caller(rig: Any) -> AsyncIterator[Caller]:
    found = Caller(rig.address, rig.credential())
    yield found
    await found.close()


async def failure(awaitable: Any) -> VolaryError:
    try:
        answer = await awaitable
    except VolaryError as error:
        return error
    raise AssertionError(f"expected an error, got {answer}")


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_good_call_is_answered(caller: Caller, shape: str) -> None:
    replies = await caller.ask(shape, "hello")
    assert replies[-1].text == "hello"


@pytest.mark.parametrize("shape", SHAPES)
async def test_an_error_of_the_tree_arrives_whole(caller: Caller, shape: str) -> None:
    error = await failure(caller.ask(shape, "not found"))
    assert isinstance(error, NotFound)
    assert (error.reason, error.metadata) == ("BIRD_NOT_FOUND", {"bird": "7"})


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("text", ["crash", "wrong type"])
async def test_a_defect_shows_an_error_id_and_nothing_else(
    caller: Caller, shape: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    error = await failure(caller.ask(shape, text))
    assert isinstance(error, Internal)
    assert "secret" not in str(error)
    assert set(error.metadata) == {"error_id"}
    assert error.metadata["error_id"] in caplog.text


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "data", [b"\xff\xff\xff", b"\x0a\x05ab", b"\x08\x01\x0a\x02\xff\xfe", b"\x0a\x02\xc3\x28"]
)
async def test_malformed_bytes_are_the_callers_fault(
    caller: Caller, shape: str, data: bytes
) -> None:
    error = await failure(caller.raw(shape, data))
    assert isinstance(error, InvalidArgument)
    assert error.reason == "MALFORMED_REQUEST"


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_nan_is_refused_with_its_field(caller: Caller, shape: str) -> None:
    error = await failure(caller.ask(shape, "x", float("nan")))
    assert isinstance(error, InvalidArgument)
    assert (error.reason, set(error.violations)) == ("NOT_A_NUMBER", {"number"})


@pytest.mark.parametrize("shape", [*SHAPES, "Missing", "Forever"])
async def test_no_credential_is_unauthenticated(rig: Any, shape: str) -> None:
    caller = Caller(rig.address, None)
    error = await failure(caller.raw(shape, b"\xff"))
    await caller.close()
    assert isinstance(error, Unauthenticated)
    assert error.reason == "CREDENTIAL_MISSING"


async def test_a_role_that_the_row_lacks_is_denied(rig: Any) -> None:
    caller = Caller(rig.address, rig.credential("viewer"))
    error = await failure(caller.ask("Unary", "hello"))
    assert isinstance(error, PermissionDenied)
    assert error.metadata["allowed_roles"] == "operator"
    await caller.close()


@pytest.mark.parametrize("shape", SHAPES)
async def test_the_handler_knows_who_calls(rig: Any, shape: str) -> None:
    caller = Caller(rig.address, rig.credential(project="birds"))
    replies = await caller.ask(shape, "who")
    assert replies[-1].text == "principals/ann birds"
    await caller.close()


async def test_what_is_left_to_the_base_is_unimplemented(caller: Caller) -> None:
    error = await failure(caller.raw("Missing", b"\xff"))
    assert isinstance(error, Unimplemented)
    assert error.reason == "METHOD_NOT_IMPLEMENTED"
    assert error.metadata == {"method": f"/{SERVICE}/Missing"}


async def test_an_unknown_method_is_unimplemented_with_details(caller: Caller) -> None:
    call = caller.channel.unary_unary("/volary.test.v1.Nothing/At", None, None)
    error = await failure(call(b"", timeout=5))
    assert (type(error), error.reason) == (Unimplemented, "METHOD_UNKNOWN")


async def test_no_deadline_gets_the_default(rig: Any) -> None:
    # past the kit's own client, which would set one
    ask, answer = types()
    async with grpc.aio.insecure_channel(rig.address) as bare:
        call = bare.unary_unary(f"/{SERVICE}/Unary", ask.SerializeToString, answer.FromString)
        headers = (("x-api-key", rig.credential()),)
        unbounded = await call(ask(text="remaining"), metadata=headers)
        too_long = await call(ask(text="remaining"), metadata=headers, timeout=3_600)
    assert 4 < unbounded.number <= 5
    assert 9 < too_long.number <= 10


async def test_a_deadline_ends_the_call(start_server: Any, policy_rows: Any) -> None:
    short = policy_rows(default_deadline_s=0.1, max_deadline_s=0.1)
    async with start_server("aio", policies=short) as rig:
        caller = Caller(rig.address, rig.credential())
        for shape in ("Unary", "Down"):
            error = await failure(caller.ask(shape, "slow", timeout_s=30))
            assert isinstance(error, DeadlineExceeded)
            assert error.metadata["max_deadline_s"] == "0.1"
        await caller.close()


@pytest.mark.parametrize("kind", ["aio", "sync"])
async def test_a_message_beyond_the_rows_limit_is_refused(
    start_server: Any, policy_rows: Any, kind: str
) -> None:
    async with start_server(kind, policies=policy_rows(max_request_bytes=100)) as rig:
        caller = Caller(rig.address, rig.credential())
        for shape in SHAPES:
            error = await failure(caller.ask(shape, "x" * 200))
            assert isinstance(error, ResourceExhausted)
            assert error.reason == "REQUEST_TOO_LARGE"
        await caller.close()


async def test_too_many_calls_are_refused_not_queued(start_server: Any) -> None:
    async with start_server("aio", max_calls=1) as rig:
        caller = Caller(rig.address, rig.credential())
        slow = caller.start("Unary", caller.Ask(text="slow").SerializeToString())

        async def refused() -> bool:
            try:
                await caller.ask("Unary", "hello")
            except ResourceExhausted as error:
                return error.reason == "TOO_MANY_CALLS" and error.retry_after_s is not None
            return False

        await eventually(refused, what="a refusal")
        slow.cancel()

        async def answered() -> bool:
            try:
                return bool(await caller.ask("Unary", "hello"))
            except ResourceExhausted:
                return False

        await eventually(answered, what="the slot to come back")
        await caller.close()


async def test_streams_never_occupy_the_unary_threads(start_server: Any) -> None:
    async with start_server("sync", threads=1, streams=2) as rig:
        caller = Caller(rig.address, rig.credential())
        held = [caller.start("Forever", b"", None) for _ in range(2)]
        for call in held:
            assert (await call.read()).text == "on"
        error = await failure(caller.raw("Forever", b"", None))
        assert isinstance(error, ResourceExhausted)
        assert error.reason == "TOO_MANY_STREAMS"
        assert (await caller.ask("Unary", "hello"))[0].text == "hello"
        for call in held:
            call.cancel()

        async def open_again() -> bool:
            call = caller.start("Forever", b"", None)
            try:
                return (await call.read()).text == "on"
            except ResourceExhausted:
                return False
            finally:
                call.cancel()

        await eventually(open_again, what="a stream's slot to come back")
        await caller.close()


async def test_drain_ends_unbounded_streams_and_finishes_calls(start_server: Any) -> None:
    async with start_server("aio") as rig:
        caller = Caller(rig.address, rig.credential())
        forever = caller.start("Forever", b"", None)
        assert (await forever.read()).text == "on"
        async with asyncio.timeout(5):
            await rig.server.stop(30)
            error = await failure(forever.read())
        assert isinstance(error, Unavailable)
        assert error.reason == "DRAINING"
        assert rig.handler.ended == ["forever"]
        await caller.close()


async def test_calls_are_counted_by_method_and_code(rig: Any, caller: Caller) -> None:
    await caller.ask("Unary", "hello")
    await failure(caller.ask("Unary", "not found"))
    method = f"/{SERVICE}/Unary"

    def count(code: str) -> float | None:
        labels = {"method": method, "code": code}
        return rig.registry.get_sample_value("volary_rpc_finished_total", labels)

    async def counted() -> bool:
        return (count("OK"), count("NOT_FOUND")) == (1.0, 1.0)

    await eventually(counted, what="both ends to be counted")
    running = rig.registry.get_sample_value("volary_rpc_running", {"method": method})
    assert running == 0


async def test_a_caller_that_goes_away_is_counted_as_cancelled(start_server: Any) -> None:
    async with start_server("aio") as rig:
        caller = Caller(rig.address, rig.credential())
        call = caller.start("Forever", b"", None)
        assert (await call.read()).text == "on"
        call.cancel()
        labels = {"method": f"/{SERVICE}/Forever", "code": "CANCELLED"}

        async def counted() -> bool:
            return rig.registry.get_sample_value("volary_rpc_finished_total", labels) == 1

        await eventually(counted, what="the cancelled call to be counted")
        await caller.close()
