"""One unary call on gRPC's core: what it waits for, what it sends, and its handler's context."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, NoReturn

import grpc
from grpc._cython import cygrpc

_core: Any = cygrpc
NO_FLAGS = 0


@dataclass(frozen=True, slots=True)
class Unary:
    """What answers one method; `is_quick` when it seldom waits, and says so before it does."""

    answer: Callable[[bytes, grpc.ServicerContext], bytes]
    is_quick: bool


class Step(Enum):
    """What the core still has to tell of a call."""

    MESSAGE = auto()  # the request is there
    CLOSED = auto()  # the call is over, for whatever reason
    SENT = auto()  # the reply and the status have left


class Aborted(Exception):
    """How `abort` leaves a handler."""


class UnaryCall(grpc.ServicerContext):
    """A call from its beginning to its end; `data` is its message once that has come.

    The thread that polls and the one that answers both touch it; what they share is under a lock.
    """

    def __init__(self, event: Any, method: Unary) -> None:
        self.method = method
        self.data: bytes | None = None
        self.is_aborted = False
        self._event = event
        self._call = event.call
        self._lock = threading.Lock()
        self._due = 0
        self._callbacks: list[Callable[[], None]] | None = []
        self._is_cancelled = self._is_statused = False
        self._trailing: Any = None
        self._code: Any = None
        self._details = b""

    def begin(self) -> None:
        """Ask for the message, and for the end of the call."""
        self._due = 2
        self._start((_core.ReceiveCloseOnServerOperation(NO_FLAGS),), Step.CLOSED)
        self._start((_core.ReceiveMessageOperation(NO_FLAGS),), Step.MESSAGE)

    def passed(self, step: Step, event: Any) -> Sequence[Callable[[], None]] | None:
        """Note a step; return what to call when it was the last one, else None."""
        with self._lock:
            if step is Step.MESSAGE:
                self.data = event.batch_operations[0].message()
            elif step is Step.CLOSED and event.batch_operations[0].cancelled():
                self._is_cancelled = True
            self._due -= 1
            if self._due or self.is_active():
                return None
            callbacks, self._callbacks = self._callbacks, None
            return callbacks

    def reply(self, data: bytes) -> None:
        """Send a reply with the status that the handler has set, OK if none."""
        code = 0 if self._code is None else self._code.value[0]
        self._send(code, self._details, _core.SendMessageOperation(data, NO_FLAGS))

    def refuse(self, code: grpc.StatusCode, details: str) -> None:
        """Send the status of an abort, else this one, and no reply."""
        if self._code is None:
            self._code, self._details = code, details.encode()
        self._send(self._code.value[0], self._details)

    def _send(self, code: int, details: bytes, *message: Any) -> None:
        status = _core.SendStatusFromServerOperation(self._trailing, code, details, NO_FLAGS)
        with self._lock:
            if self._is_cancelled or self._is_statused:
                return
            self._due += 1
            self._is_statused = True
            initial = _core.SendInitialMetadataOperation(None, NO_FLAGS)
            self._start((initial, *message, status), Step.SENT)

    def _start(self, operations: tuple[Any, ...], step: Step) -> None:
        self._call.start_server_batch(operations, (self, step))

    # what a handler sees

    def is_active(self) -> bool:
        return not (self._is_cancelled or self._is_statused)

    def time_remaining(self) -> float:
        return max(self._event.call_details.deadline - time.time(), 0)

    def cancel(self) -> bool:
        self._call.cancel()
        return True

    def add_callback(self, callback: Callable[[], None]) -> bool:
        with self._lock:
            if self._callbacks is None:
                return False
            self._callbacks.append(callback)
            return True

    def invocation_metadata(self) -> Any:
        return self._event.invocation_metadata

    def peer(self) -> str:
        return self._call.peer().decode()

    def peer_identities(self) -> Any:
        return _core.peer_identities(self._call)

    def peer_identity_key(self) -> str | None:
        key = _core.peer_identity_key(self._call)
        return None if key is None else key.decode()

    def auth_context(self) -> Mapping[str, Any]:
        found = _core.auth_context(self._call) or {}
        return {key.decode(): value for key, value in found.items()}

    def send_initial_metadata(self, initial_metadata: Any) -> None:
        raise NotImplementedError("a unary call's initial metadata leaves with its reply")

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        self._trailing = trailing_metadata

    def trailing_metadata(self) -> Any:
        return self._trailing

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        self.is_aborted = True
        self._code = grpc.StatusCode.UNKNOWN if code is grpc.StatusCode.OK else code
        self._details = details.encode()
        raise Aborted

    def abort_with_status(self, status: grpc.Status) -> NoReturn:
        self._trailing = status.trailing_metadata
        self.abort(status.code, status.details)

    def set_code(self, code: grpc.StatusCode) -> None:
        self._code = code

    def set_details(self, details: str) -> None:
        self._details = details.encode()

    def code(self) -> grpc.StatusCode | None:
        return self._code

    def details(self) -> bytes:
        return self._details

    def disable_next_message_compression(self) -> None:
        raise NotImplementedError("replies are not compressed")
