"""What calls in the native engine leave behind, fetched in batches: events, spans, counts."""

from __future__ import annotations

import logging
import os
import threading

import redis
from redis.exceptions import NoScriptError, RedisError
from volary_kit.metrics import CallMetrics
from volary_kit.streams import FIELD, MAX_LENGTH, PREDICTIONS
from volary_kit.telemetry import Telemetry

from volary_inference.domain.events import EventRing
from volary_inference.native.module import DataPlane
from volary_inference.stream import APPEND

log = logging.getLogger(__name__)
BATCH = 512
WAIT_S = 0.25
RETRY_S = (0.05, 2.0)
PERIOD_S = 0.25
BUSY_S = 1 / 64  # between parts of more: in one piece that would keep calls waiting for 10 ms
NICER = 10  # than the thread of the sockets: calls go before what is told of them
INFER = "/inference.GRPCInferenceService/ModelInfer"


def _give_way() -> None:
    """Lower this thread's own priority; on Linux niceness is a thread's (setpriority(2))."""
    own = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, own, os.getpriority(os.PRIO_PROCESS, own) + NICER)


class NativeEvents:
    """Appends prediction events to the stream; trouble with Redis is waited out.

    The plane gives them as they are sent: no byte of them is looked at here.
    """

    def __init__(self, plane: DataPlane, client: redis.Redis, stream: str = PREDICTIONS) -> None:
        self._plane = plane
        self._client = client
        self._script = b""  # its SHA-1, once Redis has it
        self._rest = (b"1", stream.encode(), b"%d" % MAX_LENGTH, FIELD)
        self._is_closing = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="native events", daemon=True)

    def start(self) -> None:
        """Begin to fetch."""
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Append what is left, within `timeout_s`."""
        self._is_closing = True
        self._thread.join(timeout_s)
        self._stopping.set()
        self._thread.join(RETRY_S[1])

    def _work(self) -> None:
        _give_way()
        while not self._stopping.is_set():
            # read before the events: what came until then is fetched
            is_last = self._is_closing
            count, events = self._plane.take_events(BATCH, WAIT_S)
            if count:
                self._deliver(count, events)
            elif is_last:
                return

    def _deliver(self, count: int, events: bytes) -> None:
        wait_s, longest_s = RETRY_S
        while not self._stopping.is_set():
            try:
                # what is sent twice has the same event id
                self._append(count, events)
            except (RedisError, OSError) as error:
                log.warning("prediction events wait: %s: %s", type(error).__name__, error)
                self._stopping.wait(wait_s)
                wait_s = min(longest_s, wait_s * 2)
            else:
                return

    def _append(self, count: int, events: bytes) -> None:
        try:
            self._send(count, events)
        except NoScriptError:  # the first time, and when Redis was started anew
            sha = self._client.script_load(APPEND)
            self._script = sha if isinstance(sha, bytes) else str(sha).encode()
            self._send(count, events)

    def _send(self, count: int, events: bytes) -> None:
        words = (b"EVALSHA", self._script, *self._rest)
        head = b"*%d\r\n" % (len(words) + count)
        head += b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
        pool = self._client.connection_pool
        connection = pool.get_connection()
        try:
            connection.send_packed_command([head, events])
            connection.read_response()
        finally:
            pool.release(connection)


class NativeRecords:
    """Moves counts and spans to where the process shows them."""

    def __init__(
        self, plane: DataPlane, metrics: CallMetrics, telemetry: Telemetry, ring: EventRing
    ) -> None:
        self._plane = plane
        self._metrics = metrics
        self._telemetry = telemetry
        self._ring = ring
        self._in_flight = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="native records", daemon=True)

    def start(self) -> None:
        """Begin to fetch."""
        self._thread.start()

    def close(self) -> None:
        """Fetch what is left and stop."""
        self._stopping.set()
        self._thread.join()

    def _work(self) -> None:
        _give_way()
        wait_s = PERIOD_S
        while not self._stopping.wait(wait_s):
            wait_s = BUSY_S if self._fetch() >= BATCH else PERIOD_S
        while self._fetch() >= BATCH:
            pass

    def _fetch(self) -> int:
        """Move counts, and spans as many as one part has; return how many."""
        for method, by_code, buckets, seconds in self._plane.take_counts():
            self._metrics.add(method, by_code, buckets, seconds)
        now = self._plane.in_flight()
        self._metrics.of(INFER).add_running(now - self._in_flight)
        self._in_flight = now
        events, spans = self._plane.take_dropped()
        self._ring.add_dropped(events)
        count, request = self._plane.take_spans(BATCH, 0)
        self._telemetry.forward(request, count, spans)
        return count
