"""A blocking gRPC channel that dresses each call and raises the error tree."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import grpc
from google.protobuf.message import Message

from volary_kit.outgoing.dress import Dress, Dressed, with_request_id
from volary_kit.outgoing.retry import NO_RETRY, Retry
from volary_kit.policies import policies
from volary_kit.statuses import code_name, error_of_rpc

Headers = Iterable[tuple[str, str | bytes]]


class SyncChannel(grpc.Channel):
    """Wrap a channel; stubs of the generated code take it as it is."""

    def __init__(self, inner: grpc.Channel, dress: Dress, retry: Retry = NO_RETRY) -> None:
        self._inner = inner
        self._dress = dress
        self._retry = retry

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        inner = self._inner.unary_unary(method, *args, **kwargs)
        return UnaryUnary(inner, method, self._dress, self._retry)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        inner = self._inner.stream_unary(method, *args, **kwargs)
        return UnaryUnary(inner, method, self._dress, NO_RETRY)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._streaming(self._inner.unary_stream(method, *args, **kwargs), method)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._streaming(self._inner.stream_stream(method, *args, **kwargs), method)

    def _streaming(self, inner: Any, method: str) -> Callable[..., Any]:
        def start(
            request: Any, timeout: float | None = None, metadata: Headers | None = None, **more: Any
        ) -> StreamReplies:
            dressed = self._dress(method, timeout, metadata or ())
            call = inner(request, timeout=dressed.timeout_s, metadata=dressed.metadata, **more)
            return StreamReplies(call, dressed)

        return start

    def subscribe(
        self,
        callback: Callable[[grpc.ChannelConnectivity], None],
        try_to_connect: bool | None = False,  # noqa: FBT001, FBT002 - gRPC's signature
    ) -> None:
        self._inner.subscribe(callback, bool(try_to_connect))

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        self._inner.unsubscribe(callback)

    def close(self) -> None:
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class UnaryUnary:
    """A callable with one reply: call it, or `with_call` for the metadata of the reply too."""

    def __init__(self, inner: Any, method: str, dress: Dress, retry: Retry) -> None:
        self._inner = inner
        self._method = method
        self._dress = dress
        self._retry = retry
        self._row = policies().get(method)

    def __call__(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Headers | None = None,
        **more: Any,
    ) -> Any:
        """Return the reply; raise a VolaryError."""
        return self.with_call(request, timeout, metadata, **more)[0]

    def with_call(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Headers | None = None,
        **more: Any,
    ) -> tuple[Any, grpc.Call]:
        """Return the reply and the call; raise a VolaryError."""
        dressed = self._dress(self._method, timeout, metadata or ())
        if self._retry is not NO_RETRY and isinstance(request, Message):
            request = with_request_id(self._row, request)
        end_s = None if dressed.timeout_s is None else time.monotonic() + dressed.timeout_s
        attempt = 1
        while True:
            left_s = None if end_s is None else max(0.0, end_s - time.monotonic())
            try:
                reply = self._inner.with_call(
                    request, timeout=left_s, metadata=dressed.metadata, **more
                )
            except grpc.RpcError as failure:
                error = error_of_rpc(failure)
                delay_s = self._retry.delay_s(attempt, error, left_s)
                if delay_s is None:
                    dressed.ended(code_name(error), error)
                    raise error from failure
                time.sleep(delay_s)
                attempt += 1
            else:
                dressed.ended("OK")
                return reply

    def future(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Headers | None = None,
        **more: Any,
    ) -> Any:
        """Start the call and return gRPC's own future: its errors are not mapped."""
        dressed = self._dress(self._method, timeout, metadata or ())
        future = self._inner.future(
            request, timeout=dressed.timeout_s, metadata=dressed.metadata, **more
        )
        future.add_done_callback(lambda done: dressed.ended(done.code().name))
        return future


class StreamReplies:
    """The replies of a stream; failures are VolaryErrors."""

    def __init__(self, call: Any, dressed: Dressed) -> None:
        self._call = call
        self._dressed = dressed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._call)
        except StopIteration:
            self._dressed.ended("OK")
            raise
        except grpc.RpcError as failure:
            error = error_of_rpc(failure)
            self._dressed.ended(code_name(error), error)
            raise error from failure
