"""What is counted of every call."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from volary_kit.calls import Call
from volary_kit.metrics import CallMetrics
from volary_kit.rules.chain import Outcome, Rule


class Metrics(Rule):
    """Count starts, ends by code, time and calls in flight, per method."""

    def __init__(self, metrics: CallMetrics) -> None:
        self._metrics = metrics
        self._of_method: dict[str, _MethodMetrics] = {}

    def before(self, call: Call) -> None:
        metrics = self._of(call.method)
        metrics.started.inc()
        metrics.running.inc()

    def after(self, call: Call, outcome: Outcome) -> None:
        metrics = self._of(call.method)
        metrics.running.dec()
        metrics.finished(outcome.code).inc()
        metrics.seconds.observe(outcome.elapsed_s)

    def _of(self, method: str) -> _MethodMetrics:
        found = self._of_method.get(method)
        if found is None:
            found = self._of_method[method] = _MethodMetrics(self._metrics, method)
        return found


class _MethodMetrics:
    """The metrics of one method, looked up once: each `labels` takes a lock of all calls."""

    def __init__(self, metrics: CallMetrics, method: str) -> None:
        self.started: Counter = metrics.started.labels(method)
        self.running: Gauge = metrics.running.labels(method)
        self.seconds: Histogram = metrics.seconds.labels(method)
        self._finished = metrics.finished
        self._method = method
        self._by_code: dict[str, Counter] = {}

    def finished(self, code: str) -> Counter:
        """Return the counter of calls that ended with a code."""
        found = self._by_code.get(code)
        if found is None:
            found = self._by_code[code] = self._finished.labels(self._method, code)
        return found
