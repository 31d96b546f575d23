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
from collections.abc import Mapping
from contextvars import Context
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import grpc
from grpc._cython import cygrpc

from volary_kit.adapters.unary import Step, Unary, UnaryCall
from volary_kit.waiting import before_waiting

log = logging.getLogger(__name__)
POLL_S = 1.0
_NOTHING = cygrpc.CompletionType.queue_timeout
_NAMES = (
    *("_ServerStage", "_REQUEST_CALL_TAG", "_request_call", "_process_event_and_continue"),
    *("_begin_shutdown_once", "_stop_serving"),
)
_inner = vars(import_module("grpc._server"))
# untyped upstream; None stands for a name that is gone
_grpc: Any = SimpleNamespace(**{name.strip("_"): _inner.get(name) for name in _NAMES})
_STATE = (
    *("lock", "completion_queue", "server", "stage", "active_rpc_count", "rpc_states", "due"),
    *("maximum_concurrent_rpcs", "server_deallocated"),
)


def is_possible(server: grpc.Server) -> bool:
    """Say whether this version of gRPC has all that the threads stand on."""
    state = getattr(server, "_state", None)
    has_names = all(name is not None for name in vars(_grpc).values())
    return has_names and all(hasattr(state, name) for name in _STATE)


class PollingThreads:
    """`threads` answer at a time, and one more polls; `methods` by `/package.Service/Method`."""

    def __init__(self, server: grpc.Server, methods: Mapping[str, Unary], threads: int) -> None:
        self._server: Any = vars(server)["_state"]
        self._methods = {name.encode(): method for name, method in methods.items()}
        self._count = threads + 1
        self._lock = threading.Lock()
        self._waiting: deque[UnaryCall] = deque()  # calls that found every thread busy
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

    def _next_call(self) -> UnaryCall | None:
        """Return a call that waits, else count this thread as idle."""
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            self._idle += 1
            return None

    def _poll(self) -> bool:
        """Take events; return True when the server has stopped, False once the lead is given."""
        state, request = self._server, _grpc.REQUEST_CALL_TAG
        while True:
            event = state.completion_queue.poll(time.time() + POLL_S)
            if state.server_deallocated:
                _grpc.begin_shutdown_once(state)
            if event.completion_type == _NOTHING:
                continue
            tag = event.tag
            if type(tag) is tuple:
                call, step = tag
                goes_on = self._has_passed(call, step, event)
                event = tag = None  # the core waits for a call that is still held on to
                if step is Step.MESSAGE and self._has_arrived(call):
                    return False
            elif tag is request and self._has_begun(event):
                goes_on = True
            else:
                goes_on = _grpc.process_event_and_continue(state, event)
            event = tag = call = None
            if not goes_on:
                self._is_stopped = True
                return True

    def _has_passed(self, call: UnaryCall, step: Step, event: Any) -> bool:
        """Note the end of a step; say whether the server goes on."""
        callbacks = call.passed(step, event)
        if callbacks is None:
            return True
        for callback in callbacks:
            try:
                callback()
            except Exception:  # a handler's own, about a call that is over
                log.exception("a callback raised")
        with self._server.lock:
            self._server.rpc_states.discard(call)
            return not _grpc.stop_serving(self._server)

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
            call = UnaryCall(event, method)
            state.due.remove(event.tag)
            state.rpc_states.add(call)
            state.active_rpc_count += 1
            call.begin()
            _grpc.request_call(state)
        return True

    def _has_arrived(self, call: UnaryCall) -> bool:
        """Answer a call whose message is there; say whether the lead went to another thread."""
        if call.data is None or not call.is_active():  # it has ended already
            call.refuse(grpc.StatusCode.UNIMPLEMENTED, "the method takes one request message")
            self._finished()
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

    def _is_left_waiting(self, call: UnaryCall) -> bool:
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

    def _answer(self, call: UnaryCall) -> None:
        try:
            _reply(call)
        except Exception:  # gRPC's own, about a call: the thread serves others, too
            log.exception("a call could not be answered")
        finally:
            self._finished()

    def _finished(self) -> None:
        with self._server.lock:
            self._server.active_rpc_count -= 1


def _reply(call: UnaryCall) -> None:
    data, call.data = call.data, None
    assert data is not None
    try:
        reply = Context().run(call.method.answer, data, call)
    except Exception:  # a handler refuses by an abort, which raises
        if not call.is_aborted:
            log.exception("a handler raised")
        call.refuse(grpc.StatusCode.UNKNOWN, "")
    else:
        call.reply(reply)
