"""The rules bound to gRPC's thread-pool server.

Three pools: unary calls, streams, probes. A stream holds its thread for as long as it lives,
so streams and `Watch` have bounded threads of their own and never occupy the unary ones; health
answers from the third, whatever the load.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import grpc
from google.protobuf.message import Message

from volary_kit.adapters.calling import PROBE, begin, to_bytes
from volary_kit.calls import Call, enter
from volary_kit.clock import Clock
from volary_kit.errors import Cancelled, ResourceExhausted, VolaryError
from volary_kit.registration import ContractError, Method
from volary_kit.rules import Rules
from volary_kit.rules.errors import outcome_of
from volary_kit.rules.idempotency import REQUEST_ID
from volary_kit.rules.size import check_size
from volary_kit.rules.validation import decoded
from volary_kit.statuses import DETAILS_KEY, GRPC_CODES

SPARE_THREADS = 2  # they answer "too many streams" while all the others hold one


class StreamThreads:
    """The threads that streams live on: `limit` of them, and two spare to refuse the next."""

    def __init__(self, limit: int) -> None:
        self.pool = ThreadPoolExecutor(limit + SPARE_THREADS, thread_name_prefix="stream")
        self._limit = limit
        self._slots = threading.BoundedSemaphore(limit)

    def take(self) -> None:
        """Take a slot; raise ResourceExhausted when every one is held."""
        if not self._slots.acquire(blocking=False):
            raise ResourceExhausted(
                "TOO_MANY_STREAMS",
                f"{self._limit} streams are open, which is the limit",
                {"limit": str(self._limit)},
                retry_after_s=0.1,
            )

    def give_back(self) -> None:
        """Give a slot back."""
        self._slots.release()


class SyncAdapter:
    """Make gRPC handlers of methods for a thread-pool server."""

    def __init__(
        self, rules: Rules, clock: Clock, streams: StreamThreads, probes: ThreadPoolExecutor
    ) -> None:
        self._rules = rules
        self._clock = clock
        self._streams = streams
        self._probes = probes

    def handler(self, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the handler of one RPC; raise ContractError where a database is needed."""
        row = method.policy
        if row.idempotency == REQUEST_ID:
            raise ContractError(f"{method.name} remembers replies: serve it with the aio server")
        if row.client_streaming and row.server_streaming:
            return grpc.stream_stream_rpc_method_handler(self._on_streams(self._streaming(method)))
        if row.client_streaming:
            return grpc.stream_unary_rpc_method_handler(self._on_streams(self._from_stream(method)))
        if row.server_streaming:
            return grpc.unary_stream_rpc_method_handler(self._on_streams(self._to_stream(method)))
        unary = self.unary(method)
        if method.name.startswith(PROBE):
            unary.experimental_thread_pool = self._probes  # pyright: ignore[reportFunctionMemberAccess]
        return grpc.unary_unary_rpc_method_handler(unary)

    def _on_streams(self, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        # the attribute by which gRPC picks a pool of its own for one handler
        behaviour.experimental_thread_pool = self._streams.pool  # pyright: ignore[reportFunctionMemberAccess]
        return behaviour

    def unary(self, method: Method) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        """Return what answers a method by bytes; a refusal ends in the context's abort."""

        def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
            call = begin(method, context, self._clock)
            try:
                self._open(method, call)
                reply = to_bytes(method.behaviour(self._parsed(method, call, data), context))
            except Exception as error:  # noqa: BLE001 - any failure gets its status here
                self._fail(call, context, error)
            self._rules.after(call, outcome_of(call, None))
            return reply

        return answer

    def _from_stream(
        self, method: Method
    ) -> Callable[[Iterator[bytes], grpc.ServicerContext], bytes]:
        def answer(chunks: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            def replies(call: Call) -> Iterator[Message]:
                yield method.behaviour(self._requests(method, call, chunks), context)

            # to its end, past the one reply, so that the rules see the outcome
            [reply] = self._stream(method, context, replies)
            return reply

        return answer

    def _to_stream(
        self, method: Method
    ) -> Callable[[bytes, grpc.ServicerContext], Iterator[bytes]]:
        def answer(data: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            def replies(call: Call) -> Iterator[Message]:
                return method.behaviour(self._parsed(method, call, data), context)

            return self._stream(method, context, replies)

        return answer

    def _streaming(
        self, method: Method
    ) -> Callable[[Iterator[bytes], grpc.ServicerContext], Iterator[bytes]]:
        def answer(chunks: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            def replies(call: Call) -> Iterator[Message]:
                return method.behaviour(self._requests(method, call, chunks), context)

            return self._stream(method, context, replies)

        return answer

    def _stream(
        self,
        method: Method,
        context: grpc.ServicerContext,
        replies: Callable[[Call], Iterator[Message]],
    ) -> Iterator[bytes]:
        call = begin(method, context, self._clock)
        failure: Exception | None = None
        has_slot = False
        try:
            self._rules.before(call)
            self._streams.take()
            has_slot = True
            enter(call)
            method.require_implemented()
            for reply in replies(call):
                yield to_bytes(reply)
            if call.refusal is not None:  # a handler that reads on a thread of its own may lose it
                raise call.refusal
        except GeneratorExit:  # the caller went away: gRPC stops iterating
            cancelled = Cancelled("CANCELLED", "the caller went away")
            self._rules.after(call, outcome_of(call, cancelled))
            raise
        except Exception as error:  # noqa: BLE001 - any failure gets its status here
            failure = error
        finally:
            if has_slot:
                self._streams.give_back()
        if failure is not None:
            self._fail(call, context, failure)
        self._rules.after(call, outcome_of(call, None))

    def _open(self, method: Method, call: Call) -> None:
        self._rules.before(call)
        enter(call)
        method.require_implemented()

    def _requests(self, method: Method, call: Call, chunks: Iterator[bytes]) -> Iterator[Message]:
        for data in chunks:
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

    def _fail(self, call: Call, context: grpc.ServicerContext, error: Exception) -> NoReturn:
        outcome = outcome_of(call, error)
        self._rules.after(call, outcome)
        status = outcome.status
        own = tuple(context.trailing_metadata() or ())
        context.set_trailing_metadata((*own, (DETAILS_KEY, status.SerializeToString())))
        context.abort(GRPC_CODES[status.code], status.message)
        raise AssertionError("abort raises")
