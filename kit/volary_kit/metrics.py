"""Counters of every call, and the port on which Prometheus reads them."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from http.server import HTTPServer
from itertools import accumulate
from typing import NamedTuple, Self

from prometheus_client import REGISTRY, CollectorRegistry, Metric
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.exposition import start_http_server
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

# 0.5 ms to 30 s: the shortest default deadline is seconds, the shortest call a cached read
BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
BOUNDS = [floatToGoString(bound) for bound in (*BUCKETS_S, float("inf"))]


class MethodCounts:
    """The counts of one method. One lock for all of a step: a metric's own takes one for each."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started = self._running = 0
        self._by_code: dict[str, int] = {}
        self._buckets = [0] * (len(BUCKETS_S) + 1)
        self._seconds = 0.0

    def begin(self) -> None:
        """Count a call that began."""
        with self._lock:
            self._started += 1
            self._running += 1

    def end(self, code: str, seconds: float) -> None:
        """Count a call that ended, by the name of its status code."""
        bucket = bisect_left(BUCKETS_S, seconds)
        with self._lock:
            self._running -= 1
            self._by_code[code] = self._by_code.get(code, 0) + 1
            self._buckets[bucket] += 1
            self._seconds += seconds

    def add(self, by_code: Mapping[str, int], buckets: Sequence[int], seconds: float) -> None:
        """Add calls that began and ended elsewhere."""
        with self._lock:
            self._started += sum(by_code.values())
            for code, count in by_code.items():
                self._by_code[code] = self._by_code.get(code, 0) + count
            self._buckets = [own + more for own, more in zip(self._buckets, buckets, strict=True)]
            self._seconds += seconds

    def add_running(self, change: int) -> None:
        """Add the change in the number of calls that another engine has in flight."""
        with self._lock:
            self._running += change

    def tell(self, method: str, families: Families) -> None:
        """Add the counts to the metrics of a scrape."""
        with self._lock:
            families.started.add_metric([method], self._started)
            families.running.add_metric([method], self._running)
            for code, count in self._by_code.items():
                families.finished.add_metric([method, code], count)
            below = zip(BOUNDS, accumulate(self._buckets), strict=True)
            families.seconds.add_metric([method], list(below), self._seconds)


class Families(NamedTuple):
    """The metrics of calls as one scrape reads them."""

    started: CounterMetricFamily
    finished: CounterMetricFamily
    seconds: HistogramMetricFamily
    running: GaugeMetricFamily

    @classmethod
    def empty(cls) -> Self:
        """Return them without a sample."""
        method = ["method"]
        return cls(
            CounterMetricFamily("volary_rpc_started", "Calls that began", labels=method),
            CounterMetricFamily(
                "volary_rpc_finished", "Calls that ended", labels=[*method, "code"]
            ),
            HistogramMetricFamily("volary_rpc_seconds", "Time of a call", labels=method),
            GaugeMetricFamily("volary_rpc_running", "Calls in flight", labels=method),
        )


class CallMetrics(Collector):
    """The metrics of calls, registered once per registry."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._methods: dict[str, MethodCounts] = {}
        registry.register(self)

    def of(self, method: str) -> MethodCounts:
        """Return the counts of one method."""
        # whoever comes second gets the first one's: `setdefault` is one step
        return self._methods.get(method) or self._methods.setdefault(method, MethodCounts())

    def add(
        self, method: str, by_code: Mapping[str, int], buckets: Sequence[int], seconds: float
    ) -> None:
        """Add calls that ended in an engine of another language.

        `buckets` has one count for each of `BUCKETS_S` and one for all above, not cumulative.
        """
        self.of(method).add(by_code, buckets, seconds)

    def describe(self) -> Iterable[Metric]:
        """Return what is told, for the registry to find a second one of the same name."""
        return Families.empty()

    def collect(self) -> Iterable[Metric]:
        """Return every metric as it is now."""
        families = Families.empty()
        for method, counts in sorted(self._methods.items()):
            counts.tell(method, families)
        return families


def serve_metrics(
    host: str,
    port: int,
    registry: CollectorRegistry = REGISTRY,
    certificate: tuple[str, str] | None = None,
) -> Callable[[], None]:
    """Serve `/metrics` on a thread of its own; return what closes it.

    `certificate` is (certificate file, key file) and turns TLS on.
    """
    server: HTTPServer
    thread: threading.Thread
    if certificate is None:
        server, thread = start_http_server(port, host, registry)
    else:
        server, thread = start_http_server(port, host, registry, *certificate)

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return close
