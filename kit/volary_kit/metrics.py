"""Counters of every call, and the port on which Prometheus reads them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from http.server import HTTPServer
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import start_http_server

# 0.5 ms to 30 s: the shortest default deadline is seconds, the shortest call a cached read
BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class CallMetrics:
    """The metrics of calls, registered once per registry."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.started = Counter(
            "volary_rpc_started_total", "Calls that began", ["method"], registry=registry
        )
        self.finished = Counter(
            "volary_rpc_finished_total", "Calls that ended", ["method", "code"], registry=registry
        )
        self.seconds = Histogram(
            "volary_rpc_seconds", "Time of a call", ["method"], registry=registry, buckets=BUCKETS_S
        )
        self.running = Gauge("volary_rpc_running", "Calls in flight", ["method"], registry=registry)

    def add(
        self, method: str, by_code: Mapping[str, int], buckets: Sequence[int], seconds: float
    ) -> None:
        """Add calls that ended in an engine of another language.

        `buckets` has one count for each of `BUCKETS_S` and one for all above, not cumulative.
        """
        self.started.labels(method).inc(sum(by_code.values()))
        for code, count in by_code.items():
            self.finished.labels(method, code).inc(count)
        # the library offers no way to add counts, and to observe one by one costs 1 us a call
        histogram: Any = self.seconds.labels(method)
        histogram._sum.inc(seconds)  # noqa: SLF001
        for bucket, count in zip(histogram._buckets, buckets, strict=True):  # noqa: SLF001
            bucket.inc(count)


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
