"""What is counted of every call."""

from __future__ import annotations

from volary_kit.calls import Call
from volary_kit.metrics import CallMetrics
from volary_kit.rules.chain import Outcome, Rule


class Metrics(Rule):
    """Count starts, ends by code, time and calls in flight, per method."""

    def __init__(self, metrics: CallMetrics) -> None:
        self._metrics = metrics

    def before(self, call: Call) -> None:
        self._metrics.of(call.method).begin()

    def after(self, call: Call, outcome: Outcome) -> None:
        self._metrics.of(call.method).end(outcome.code, outcome.elapsed_s)
