"""A grpc.aio channel that dresses each call and raises the error tree."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Iterable
from typing import Any, Self

import grpc
from google.protobuf.message import Message

from volary_kit.errors import VolaryError
from volary_kit.outgoing.dress import Dress, Dressed, with_request_id
from volary_kit.outgoing.retry import NO_RETRY, Retry
from volary_kit.policies import policies
from volary_kit.statuses import code_name, error_of_rpc


class AioChannel(grpc.aio.Channel):
    """Wrap a channel; stubs of the generated code take it as it is."""

    def __init__(self, inner: grpc.aio.Channel, dress: Dress, retry: Retry = NO_RETRY) -> None:
        self._inner = inner
        self._dress = dress
        self._retry = retry

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        inner = self._inner.unary_unary(method, *args, **kwargs)
        row = policies().get(method)

        def start(
            request: Message,
            *,
            timeout: float | None = None,
            metadata: Iterable[tuple[str, str | bytes]] | None = None,
            **options: Any,
        ) -> UnaryCall:
            dressed = self._dress(method, timeout, metadata or ())
            request = request if self._retry is NO_RETRY else with_request_id(row, request)
            return UnaryCall(
                lambda left_s: inner(request, timeout=left_s, metadata=dressed.metadata, **options),
                dressed,
                self._retry,
            )

        return start

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        inner = self._inner.stream_unary(method, *args, **kwargs)

        def start(
            requests: Any = None,
            timeout: float | None = None,
            metadata: Iterable[tuple[str, str | bytes]] | None = None,
            **options: Any,
        ) -> StreamCall:
            dressed = self._dress(method, timeout, metadata or ())
            call = inner(requests, timeout=dressed.timeout_s, metadata=dressed.metadata, **options)
            return StreamCall(call, dressed)

        return start

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._streaming(self._inner.unary_stream(method, *args, **kwargs), method)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._streaming(self._inner.stream_stream(method, *args, **kwargs), method)

    def _streaming(self, inner: Any, method: str) -> Callable[..., Any]:
        def start(
            request: Any = None,
            timeout: float | None = None,
            metadata: Iterable[tuple[str, str | bytes]] | None = None,
            **options: Any,
        ) -> StreamCall:
            dressed = self._dress(method, timeout, metadata or ())
            call = inner(request, timeout=dressed.timeout_s, metadata=dressed.metadata, **options)
            return StreamCall(call, dressed)

        return start

    async def close(self, grace: float | None = None) -> None:
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:  # noqa: FBT001, FBT002 - gRPC's signature
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._inner.channel_ready()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class UnaryCall:
    """A started unary call; awaiting it gives the reply or raises a VolaryError."""

    def __init__(
        self, start: Callable[[float | None], Any], dressed: Dressed, retry: Retry
    ) -> None:
        self._start = start
        self._dressed = dressed
        self._retry = retry
        self._loop = asyncio.get_running_loop()
        left_s = dressed.timeout_s
        self._end_s = None if left_s is None else self._loop.time() + left_s
        self._call = start(left_s)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._reply().__await__()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    async def _reply(self) -> Any:
        attempt = 1
        while True:
            try:
                reply = await self._call
            except asyncio.CancelledError as error:
                self._dressed.ended("CANCELLED", error)
                raise
            except grpc.RpcError as failure:
                error = error_of_rpc(failure)
                delay_s = self._retry.delay_s(attempt, error, self._left_s())
                if delay_s is None:
                    self._dressed.ended(code_name(error), error)
                    raise error from failure
                await asyncio.sleep(delay_s)
                attempt += 1
                self._call = self._start(self._left_s())
            else:
                self._dressed.ended("OK")
                return reply

    def _left_s(self) -> float | None:
        return None if self._end_s is None else max(0.0, self._end_s - self._loop.time())


class StreamCall:
    """A started streaming call: iterate, read, write or await it; failures are VolaryErrors."""

    def __init__(self, call: Any, dressed: Dressed) -> None:
        self._call = call
        self._dressed = dressed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._mapped(self._call).__await__()

    async def __aiter__(self) -> AsyncIterator[Any]:
        try:
            async for reply in self._call:
                yield reply
        except grpc.RpcError as failure:
            raise self._failed(failure) from failure
        except (GeneratorExit, asyncio.CancelledError) as error:
            self._call.cancel()
            self._dressed.ended("CANCELLED", error)
            raise
        self._dressed.ended("OK")

    async def read(self) -> Any:
        """Return the next reply, `grpc.aio.EOF` at the end."""
        return await self._mapped(self._call.read(), is_last=False)

    async def write(self, request: Any) -> None:
        """Send one request of a stream."""
        await self._mapped(self._call.write(request), is_last=False)

    async def done_writing(self) -> None:
        """Half-close the stream."""
        await self._mapped(self._call.done_writing(), is_last=False)

    async def _mapped(self, awaitable: Any, *, is_last: bool = True) -> Any:
        try:
            result = await awaitable
        except grpc.RpcError as failure:
            raise self._failed(failure) from failure
        except asyncio.InvalidStateError as closed:
            # a write to a call that has ended: its status says why
            raise await self._why(closed) from closed
        if is_last:
            self._dressed.ended("OK")
        return result

    async def _why(self, closed: asyncio.InvalidStateError) -> BaseException:
        code = await self._call.code()
        if code is grpc.StatusCode.OK:
            return closed
        trailing = await self._call.trailing_metadata()
        details = await self._call.details()
        return self._failed(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details))

    def _failed(self, failure: grpc.RpcError) -> VolaryError:
        error = error_of_rpc(failure)
        self._dressed.ended(code_name(error), error)
        return error
