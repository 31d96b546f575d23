"""The engine's counters as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from volary_inference.domain.events import EventRing
from volary_inference.domain.statistics import Snapshot
from volary_inference.domain.versions import Version, Versions

LABELS = ["project", "model", "version"]


class EngineCollector(Collector):
    """Reads the statistics of each version at the moment of a scrape."""

    def __init__(self, versions: Versions, ring: EventRing) -> None:
        self._versions = versions
        self._ring = ring

    def collect(self) -> Iterator[Metric]:
        """Yield every metric of the engine."""
        seen = [
            (_labels(version), version.serving.snapshot())
            for version in self._versions.all()
            if version.serving is not None
        ]
        yield _by_reason("volary_batches_closed", "Batches, by why they were closed", seen)
        yield from _totals(seen)
        dropped = CounterMetricFamily(
            "volary_prediction_events_dropped", "Events that found the ring full"
        )
        dropped.add_metric([], self._ring.dropped)
        yield dropped
        queued = GaugeMetricFamily("volary_prediction_events_queued", "Events in the ring")
        queued.add_metric([], len(self._ring))
        yield queued


Seen = list[tuple[list[str], Snapshot]]


def _labels(version: Version) -> list[str]:
    return [version.key.project, version.key.model, str(version.key.version)]


def _by_reason(name: str, text: str, seen: Seen) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[*LABELS, "reason"])
    for labels, snapshot in seen:
        for reason, count in snapshot.closings.items():
            family.add_metric([*labels, reason], count)
    return family


def _totals(seen: Seen) -> Iterator[CounterMetricFamily]:
    calls = CounterMetricFamily("volary_infer_calls", "Calls", labels=[*LABELS, "outcome"])
    rows = CounterMetricFamily("volary_infer_rows", "Rows that ran", labels=LABELS)
    run = CounterMetricFamily("volary_infer_run_seconds", "Time in runs", labels=LABELS)
    queue = CounterMetricFamily("volary_infer_queue_seconds", "Time in queue", labels=LABELS)
    dropped = CounterMetricFamily(
        "volary_infer_dropped", "Calls that never ran", labels=[*LABELS, "reason"]
    )
    for labels, snapshot in seen:
        calls.add_metric([*labels, "success"], snapshot.success.count)
        calls.add_metric([*labels, "failure"], snapshot.failure.count)
        rows.add_metric(labels, snapshot.rows)
        run.add_metric(labels, snapshot.run.seconds)
        queue.add_metric(labels, snapshot.queue.seconds)
        for reason, count in snapshot.dropped.items():
            dropped.add_metric([*labels, reason], count)
    yield from (calls, rows, run, queue, dropped)
