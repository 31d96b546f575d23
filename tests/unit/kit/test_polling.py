"""Unary calls on the threads that poll: who answers, and who takes the lead."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from volary_kit.adapters.polling import PollingThreads, Unary, is_possible
from volary_kit.waiting import about_to_wait

QUICK, SLOW = "/test.Birds/Quick", "/test.Birds/Slow"
LONG_S = 20.0


@dataclass
class Birds:
    """Answers with the text it was given; `hold` waits for the gate, as its method may."""

    gate: threading.Event = field(default_factory=threading.Event)
    held: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    threads: list[str] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)

    def answer(self, data: bytes, context: Any) -> bytes:
        self.threads.append(threading.current_thread().name)
        if data == b"crash":
            raise KeyError("a secret")
        if data == b"hold":
            context.add_callback(self.gone.set)
            about_to_wait()
            self.held.release()
            assert self.gate.wait(LONG_S)
        return data


class Rig:
    def __init__(self, server: Any, channel: Any, birds: Birds) -> None:
        self.server = server
        self.channel = channel
        self.birds = birds

    def start(self, data: bytes, method: str = QUICK) -> Any:
        return self.channel.unary_unary(method).future(data, timeout=LONG_S)

    def ask(self, data: bytes, method: str = QUICK) -> bytes:
        return self.start(data, method).result(LONG_S)


@contextmanager
def serving(threads: int) -> Iterator[Rig]:
    birds = Birds()
    server = grpc.server(ThreadPoolExecutor(1))
    assert is_possible(server), "this version of gRPC lacks what the threads stand on"
    port = server.add_insecure_port("127.0.0.1:0")
    methods = {QUICK: Unary(birds.answer, True), SLOW: Unary(birds.answer, False)}
    PollingThreads(server, methods, threads).start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Rig(server, channel, birds)
        birds.gate.set()
        server.stop(0).wait(LONG_S)


def test_quick_calls_stay_where_they_arrive() -> None:
    with serving(threads=4) as rig:
        assert [rig.ask(b"%d" % number) for number in range(50)] == [b"%d" % n for n in range(50)]
        assert len(set(rig.birds.threads)) == 1


@pytest.mark.parametrize("method", [QUICK, SLOW])
def test_a_call_that_waits_holds_up_no_other(method: str) -> None:
    with serving(threads=4) as rig:
        held = rig.start(b"hold", method)
        assert rig.birds.held.acquire(timeout=LONG_S)
        assert rig.ask(b"next", method) == b"next"
        assert not held.done()
        rig.birds.gate.set()
        assert held.result(LONG_S) == b"hold"


def test_a_call_that_finds_every_thread_busy_is_answered_later() -> None:
    with serving(threads=2) as rig:
        held = [rig.start(b"hold") for _ in range(2)]
        for _ in held:
            assert rig.birds.held.acquire(timeout=LONG_S)
        late = [rig.start(b"late") for _ in range(5)]
        # the polling thread is free all the while: it refuses what it does not know
        with pytest.raises(grpc.RpcError) as refused:
            rig.ask(b"", "/test.Birds/Unknown")
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
        assert not any(each.done() for each in late)
        rig.birds.gate.set()
        assert [each.result(LONG_S) for each in (*held, *late)] == [b"hold"] * 2 + [b"late"] * 5


def test_a_caller_that_goes_away_is_told_of() -> None:
    with serving(threads=2) as rig:
        held = rig.start(b"hold")
        assert rig.birds.held.acquire(timeout=LONG_S)
        held.cancel()
        assert rig.birds.gone.wait(LONG_S)


def test_what_a_handler_raises_is_not_told() -> None:
    with serving(threads=2) as rig:
        with pytest.raises(grpc.RpcError) as raised:
            rig.ask(b"crash")
        assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.UNKNOWN, "")
        assert rig.ask(b"again") == b"again"


def test_a_call_without_a_message_is_refused() -> None:
    with serving(threads=2) as rig:
        with pytest.raises(grpc.RpcError) as refused:
            rig.channel.stream_unary(QUICK)(iter(()), timeout=LONG_S)
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
        assert rig.ask(b"again") == b"again"


def test_a_stop_lets_calls_finish_and_ends_every_thread() -> None:
    before = set(threading.enumerate())
    with serving(threads=3) as rig:
        held = rig.start(b"hold")
        assert rig.birds.held.acquire(timeout=LONG_S)
        ours = [each for each in set(threading.enumerate()) - before if "unary" in each.name]
        assert len(ours) == 4
        stopped = rig.server.stop(LONG_S)
        rig.birds.gate.set()
        assert held.result(LONG_S) == b"hold"
        assert stopped.wait(LONG_S)
    for thread in ours:
        thread.join(LONG_S)
        assert not thread.is_alive()


@pytest.mark.parametrize("method", [QUICK, SLOW])
def test_many_callers_each_get_their_own(method: str) -> None:
    with serving(threads=4) as rig:
        texts = [b"%d" % number for number in range(500)]
        with ThreadPoolExecutor(16) as pool:
            assert list(pool.map(lambda data: rig.ask(data, method), texts)) == texts
