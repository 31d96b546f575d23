"""What calls in the native engine leave behind, fetched in batches: events, spans, counts."""

from __future__ import annotations

import logging
import threading

import redis
from redis.exceptions import RedisError
from volary_kit.metrics import CallMetrics
from volary_kit.streams import PREDICTIONS
from volary_kit.telemetry import Telemetry

from volary_inference.domain.events import EventRing
from volary_inference.native.module import DataPlane
from volary_inference.stream import append_to

log = logging.getLogger(__name__)
BATCH = 512
WAIT_S = 0.25
RETRY_S = (0.05, 2.0)
PERIOD_S = 0.25
INFER = "/inference.GRPCInferenceService/ModelInfer"


class NativeEvents:
    """Appends prediction events to the stream; trouble with Redis is waited out."""

    def __init__(self, plane: DataPlane, client: redis.Redis, stream: str = PREDICTIONS) -> None:
        self._plane = plane
        self._append = append_to(client, stream)
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
        while not self._stopping.is_set():
            # read before the events: what came until then is fetched
            is_last = self._is_closing
            events = self._plane.take_events(BATCH, WAIT_S)
            if events:
                self._deliver(events)
            elif is_last:
                return

    def _deliver(self, events: list[bytes]) -> None:
        wait_s, longest_s = RETRY_S
        while not self._stopping.is_set():
            try:
                # what is sent twice has the same event id
                self._append(events)
            except (RedisError, OSError) as error:
                log.warning("prediction events wait: %s: %s", type(error).__name__, error)
                self._stopping.wait(wait_s)
                wait_s = min(longest_s, wait_s * 2)
            else:
                return


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
        is_last = False
        while not is_last:
            is_last = self._stopping.wait(PERIOD_S)
            self._fetch()

    def _fetch(self) -> None:
        for method, by_code, buckets, seconds in self._plane.take_counts():
            self._metrics.add(method, by_code, buckets, seconds)
        now = self._plane.in_flight()
        self._metrics.of(INFER).add_running(now - self._in_flight)
        self._in_flight = now
        events, spans = self._plane.take_dropped()
        self._ring.add_dropped(events)
        count, request = self._plane.take_spans(BATCH, 0)
        self._telemetry.forward(request, count, spans)
        while count == BATCH:
            count, request = self._plane.take_spans(BATCH, 0)
            self._telemetry.forward(request, count)
