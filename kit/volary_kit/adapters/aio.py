"""The rules bound to grpc.aio.

Handlers are registered on raw bytes and parse them here: gRPC's own parser answers INTERNAL,
without details, to what is the caller's mistake.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status

from volary_kit.adapters.calling import PROBE, begin, to_bytes
from volary_kit.calls import Call, enter
from volary_kit.clock import Clock
from volary_kit.errors import Unavailable, VolaryError
from volary_kit.registration import Method
from volary_kit.rules import Outcome, Rules
from volary_kit.rules.deadline import expired
from volary_kit.rules.errors import outcome_of
from volary_kit.rules.idempotency import ReplyLedger, is_remembered
from volary_kit.rules.size import check_size
from volary_kit.rules.validation import decoded
from volary_kit.statuses import DETAILS_KEY, GRPC_CODES

Context = grpc.aio.ServicerContext[Any, Any]
Body = Callable[[Call], Awaitable[bytes | None]]


class AioAdapter:
    """Make gRPC handlers of methods; ends the unbounded streams when told to drain."""

    def __init__(self, rules: Rules, clock: Clock, ledger: ReplyLedger | None = None) -> None:
        self._rules = rules
        self._clock = clock
        self._ledger = ledger
        self._unbounded: set[asyncio.Timeout] = set()
        self._is_draining = False

    def handler(self, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the handler of one RPC, of the shape that its policy row states."""
        row = method.policy
        if row.client_streaming and row.server_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._streaming(method), response_serializer=to_bytes
            )
        if row.client_streaming:
            return grpc.stream_unary_rpc_method_handler(
                self._from_stream(method), response_serializer=to_bytes
            )
        if row.server_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._to_stream(method), response_serializer=to_bytes
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(method), response_serializer=to_bytes
        )

    def end_unbounded(self) -> None:
        """End every unbounded stream, and each that comes later, with UNAVAILABLE."""
        self._is_draining = True
        now_s = asyncio.get_running_loop().time()
        for limit in list(self._unbounded):
            if not limit.expired():
                limit.reschedule(now_s)

    def _unary(self, method: Method) -> Callable[[bytes, Context], Awaitable[bytes | None]]:
        async def answer(data: bytes, context: Context) -> bytes | None:
            async def body(call: Call) -> bytes:
                request = self._parsed(method, call, data)
                return to_bytes(await self._reply(method, call, request, context))

            return await self._serve(method, context, body)

        return answer

    def _from_stream(
        self, method: Method
    ) -> Callable[[AsyncIterator[bytes], Context], Awaitable[bytes | None]]:
        async def answer(chunks: AsyncIterator[bytes], context: Context) -> bytes | None:
            async def body(call: Call) -> bytes:
                return to_bytes(
                    await method.behaviour(self._requests(method, call, chunks), context)
                )

            return await self._serve(method, context, body)

        return answer

    def _to_stream(self, method: Method) -> Callable[[bytes, Context], Awaitable[None]]:
        async def answer(data: bytes, context: Context) -> None:
            async def body(call: Call) -> None:
                request = self._parsed(method, call, data)
                await _send(method.behaviour(request, context), context)

            await self._serve(method, context, body)

        return answer

    def _streaming(
        self, method: Method
    ) -> Callable[[AsyncIterator[bytes], Context], Awaitable[None]]:
        async def answer(chunks: AsyncIterator[bytes], context: Context) -> None:
            async def body(call: Call) -> None:
                requests = self._requests(method, call, chunks)
                await _send(method.behaviour(requests, context), context)

            await self._serve(method, context, body)

        return answer

    async def _reply(
        self, method: Method, call: Call, request: Message, context: Context
    ) -> Message:
        if self._ledger is None or not is_remembered(call):
            return await method.behaviour(request, context)
        return await self._ledger.once(
            call, request, method.reply_type, lambda: method.behaviour(request, context)
        )

    async def _requests(
        self, method: Method, call: Call, chunks: AsyncIterator[bytes]
    ) -> AsyncIterator[Message]:
        async for data in chunks:
            try:
                request = self._parsed(method, call, data)
            except VolaryError as refusal:
                call.refusal = refusal
                raise
            yield request

    def _parsed(self, method: Method, call: Call, data: bytes) -> Message:
        check_size(call, data)
        request = decoded(method.request_type, data)
        self._rules.received(call, request)
        return request

    async def _serve(self, method: Method, context: Context, body: Body) -> bytes | None:
        call = begin(method, context, self._clock)
        try:
            self._rules.before(call)
            enter(call)
            method.require_implemented()
            if method.name.startswith(PROBE):
                reply = await body(call)  # a Watch ends by itself, once it has told of the drain
            elif call.policy.unbounded:
                async with self._until_drained():
                    reply = await body(call)
            else:
                reply = await _within_deadline(call, body)
            if call.refusal is not None:  # a handler that reads in a task of its own may lose it
                raise call.refusal
        except grpc.aio.AbortError:
            self._rules.after(call, _aborted(call, context))
            raise
        except asyncio.CancelledError as error:
            self._rules.after(call, outcome_of(call, error))
            raise
        except Exception as error:  # noqa: BLE001 - the one place where any failure gets its status
            outcome = outcome_of(call, error)
            self._rules.after(call, outcome)
            await _abort(context, outcome.status)
            return None  # abort raises; this line is for the type checker
        self._rules.after(call, outcome_of(call, None))
        return reply

    @asynccontextmanager
    async def _until_drained(self) -> AsyncIterator[None]:
        """Hold an unbounded call to the drain."""
        if self._is_draining:
            raise draining()
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._unbounded.add(limit)
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise draining() from None
        finally:
            self._unbounded.discard(limit)


async def _within_deadline(call: Call, body: Body) -> bytes | None:
    limit = asyncio.timeout(call.remaining_s())
    try:
        async with limit:
            return await body(call)
    except TimeoutError:
        if not limit.expired():
            raise
        raise expired(call) from None


def draining() -> Unavailable:
    """Return the error of a stream that ends because the process does."""
    return Unavailable("DRAINING", "this process is going away; connect again", retry_after_s=0.1)


async def _send(replies: Any, context: Context) -> None:
    """Write what an async generator yields; a coroutine writes to the context by itself."""
    if not hasattr(replies, "__aiter__"):
        await replies
        return
    async with aclosing(replies):
        async for reply in replies:
            await context.write(to_bytes(reply))


async def _abort(context: Context, status: Status) -> None:
    trailing = [*(context.trailing_metadata() or ()), (DETAILS_KEY, status.SerializeToString())]
    await context.abort(GRPC_CODES[status.code], status.message, tuple(trailing))


def _aborted(call: Call, context: Context) -> Outcome:
    code = context.code()
    number = code.value[0] if isinstance(code, grpc.StatusCode) else int(code or 2)
    return Outcome(Status(code=number), call.clock.monotonic_s() - call.started_s)
