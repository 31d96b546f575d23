"""Unary calls answered by the thread that polls gRPC's completion queue.

gRPC's own thread-pool server hands a unary call over three times: from its polling thread to the
pool, back for the message, and back again for the status; on a busy core that is most of what a
short call costs. Here the threads take turns (leader and followers): one polls, and answers what
comes by itself. Before a call waits (`waiting.about_to_wait`) the next thread takes the lead; a
call of a method that is not `quick` is taken to wait from its first line. Streams, probes and
everything else go the way that gRPC has for them, in its own code and its own pools.

It stands on names of `grpc._server` and of its Cython layer that are no public API. They are
looked up when a server is made: where one is missing, gRPC's own threads serve (`is_possible`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import grpc
from grpc import _server as inner
from grpc._cython import cygrpc

from volary_kit.waiting import before_waiting

log = logging.getLogger(__name__)
Answer = Callable[[bytes, grpc.ServicerContext], bytes]
POLL_S = 1.0
_NAMES = (
    *("_Context", "_RPCState", "_ServerStage", "_abort", "_begin_shutdown_once", "_CLOSED"),
    *("_process_event_and_continue", "_receive_close_on_server", "_receive_message", "_status"),
    *("_request_call", "_REQUEST_CALL_TAG"),
    *("_RECEIVE_CLOSE_ON_SERVER_TOKEN", "_RECEIVE_MESSAGE_TOKEN"),
)
# untyped upstream; None stands for a name that is gone
_grpc: Any = SimpleNamespace(**{name.strip("_"): vars(inner).get(name) for name in _NAMES})
_core: Any = cygrpc
_STATE = ("lock", "completion_queue", "server", "stage", "active_rpc_count", "rpc_states", "due")


@dataclass(frozen=True, slots=True)
class Unary:
    """What answers one method; `is_quick` when it seldom waits, and says so before it does."""

    answer: Answer
    is_quick: bool


def is_possible(server: grpc.Server) -> bool:
    """Say whether this version of gRPC has all that this module stands on."""
    state = getattr(server, "_state", None)
    has_names = all(name is not None for name in vars(_grpc).values())
    return has_names and all(hasattr(state, name) for name in _STATE)


class _Arriving:
    """A call whose message is on its way: the tag of that event."""

    __slots__ = ("_received", "event", "method", "state")

    def __init__(self, event: Any, method: Unary) -> None:
        self.event = event
        self.method = method
        self.state = _grpc.RPCState()
        self._received = _grpc.receive_message(self.state, event.call, None)

    def __call__(self, event: Any) -> Any:
        return self._received(event)


class PollingThreads:
    """`threads` answer at a time, and one more polls; `methods` by `/package.Service/Method`."""

    def __init__(self, server: grpc.Server, methods: Mapping[str, Unary], threads: int) -> None:
        self._server: Any = vars(server)["_state"]
        self._methods = {name.encode(): method for name, method in methods.items()}
        self._count = threads + 1
        self._lock = threading.Lock()
        self._waiting: deque[_Arriving] = deque()  # calls that found every thread busy
        self._idle = 0
        self._is_stopped = False
        self._lead = threading.Lock()  # released by who gives the lead, acquired by who takes it
        self._lead.acquire()

    def start(self) -> None:
        """Begin to take calls; the server stops as gRPC's own does."""
        state = self._server
        with state.lock:
            state.server.start()
            state.stage = _grpc.ServerStage.STARTED
            _grpc.request_call(state)
        for number in range(self._count):
            name = f"unary {number}"
            threading.Thread(target=self._work, args=(number == 0,), name=name, daemon=True).start()

    def _work(self, leads: bool) -> None:  # noqa: FBT001 - the target of a thread
        while True:
            if leads:
                leads = self._poll()
            if self._is_stopped:
                break
            call = self._next_call()
            if call is not None:
                self._answer(call)
                continue
            leads = self._lead.acquire()
            if self._is_stopped:
                break
        if leads:
            self._lead.release()  # the next one ends, too

    def _next_call(self) -> _Arriving | None:
        """Return a call that waits, else count this thread as idle."""
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            self._idle += 1
            return None

    def _poll(self) -> bool:
        """Take events; return True when the server has stopped, False once the lead is given."""
        state, request = self._server, _grpc.REQUEST_CALL_TAG
        nothing = _core.CompletionType.queue_timeout
        while True:
            event = state.completion_queue.poll(time.time() + POLL_S)
            if state.server_deallocated:
                _grpc.begin_shutdown_once(state)
            if event.completion_type == nothing:
                continue
            tag = event.tag
            if tag is request and self._has_begun(event):
                continue
            if not _grpc.process_event_and_continue(state, event):
                self._is_stopped = True
                return True
            # a call in the event must be gone before the next poll, or the core waits for it
            event = None
            if type(tag) is _Arriving and self._has_arrived(tag):
                return False

    def _has_begun(self, event: Any) -> bool:
        """Begin a unary call; what this does not take goes gRPC's own way."""
        state = self._server
        method = self._methods.get(event.call_details.method) if event.success else None
        most = state.maximum_concurrent_rpcs
        if method is None or (most is not None and state.active_rpc_count >= most):
            return False
        with state.lock:
            if state.stage is not _grpc.ServerStage.STARTED:
                return False
            call = _Arriving(event, method)
            with call.state.condition:
                self._receive(call)
            state.due.remove(event.tag)
            state.rpc_states.add(call.state)
            state.active_rpc_count += 1
            _grpc.request_call(state)
        return True

    def _receive(self, call: _Arriving) -> None:
        """Ask for the end of the call, whoever ends it, and for its message."""
        state, start = call.state, call.event.call.start_server_batch
        closed = _grpc.receive_close_on_server(state)
        start((_core.ReceiveCloseOnServerOperation(0),), closed)
        start((_core.ReceiveMessageOperation(0),), call)
        state.due.add(_grpc.RECEIVE_CLOSE_ON_SERVER_TOKEN)
        state.due.add(_grpc.RECEIVE_MESSAGE_TOKEN)

    def _has_arrived(self, call: _Arriving) -> bool:
        """Answer a call whose message is there; say whether the lead went to another thread."""
        if call.state.request is None:
            self._end_without_message(call)
            return False
        if self._is_left_waiting(call):
            return False
        if not call.method.is_quick:
            self._give_lead()
            self._answer(call)
            return True
        given: list[bool] = []

        def give() -> None:
            given.append(True)
            self._give_lead()

        before_waiting(give)
        try:
            self._answer(call)
        finally:
            before_waiting(None)
        return bool(given)

    def _is_left_waiting(self, call: _Arriving) -> bool:
        """Leave a call to whoever is done first, when no thread is idle to take the lead."""
        if self._idle:  # none but the leader makes it fewer
            return False
        with self._lock:
            if self._idle:
                return False
            self._waiting.append(call)
            return True

    def _give_lead(self) -> None:
        with self._lock:
            self._idle -= 1
        self._lead.release()

    def _answer(self, call: _Arriving) -> None:
        try:
            self._reply(call)
        except Exception:  # gRPC's own, about a call: the thread serves others, too
            log.exception("a call could not be answered")
        finally:
            self._finished()

    def _reply(self, call: _Arriving) -> None:
        state = call.state
        data, state.request = state.request, None
        context = _grpc.Context(call.event, state, None)
        try:
            reply = state.context.run(call.method.answer, data, context)
        except Exception as error:  # noqa: BLE001 - a handler refuses by an abort, which raises
            self._abort(call, error)
        else:
            _grpc.status(call.event, state, reply)

    def _abort(self, call: _Arriving, error: Exception) -> None:
        if not call.state.aborted:
            log.error("a handler raised", exc_info=error)
        with call.state.condition:
            _grpc.abort(call.state, call.event.call, _core.StatusCode.unknown, b"")

    def _end_without_message(self, call: _Arriving) -> None:
        """Refuse a call that ended before its message; one that was cancelled has ended."""
        with call.state.condition:
            if call.state.client is _grpc.CLOSED:
                text = b"the method takes exactly one request message"
                _grpc.abort(call.state, call.event.call, _core.StatusCode.unimplemented, text)
        self._finished()

    def _finished(self) -> None:
        with self._server.lock:
            self._server.active_rpc_count -= 1
