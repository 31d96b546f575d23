"""The engine's counters as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from volary_inference.domain.events import EventRing
from volary_inference.domain.guarding import Guard
from volary_inference.domain.statistics import Snapshot
from volary_inference.domain.versions import Version, Versions
from volary_inference.lifecycle.residence import Residence

LABELS = ["project", "model", "version"]


class EngineCollector(Collector):
    """Reads the statistics of each version at the moment of a scrape."""

    def __init__(self, versions: Versions, ring: EventRing, residence: Residence) -> None:
        self._versions = versions
        self._ring = ring
        self._residence = residence

    def collect(self) -> Iterator[Metric]:
        """Yield every metric of the engine."""
        seen = [
            (_labels(version), version.serving.snapshot())
            for version in self._versions.all()
            if version.serving is not None
        ]
        yield self._held()
        yield _by_reason("volary_batches_closed", "Batches, by why they were closed", seen)
        yield from _totals(seen)
        yield from _guards(version for version in self._versions.all() if version.serving)
        yield from _occupancy(self._residence)
        dropped = CounterMetricFamily(
            "volary_prediction_events_dropped", "Events that found the ring full"
        )
        dropped.add_metric([], self._ring.dropped)
        yield dropped
        queued = GaugeMetricFamily("volary_prediction_events_queued", "Events in the ring")
        queued.add_metric([], len(self._ring))
        yield queued

    def _held(self) -> Metric:
        """Say what runs: a variant is never taken for what was trained."""
        family = GaugeMetricFamily(
            "volary_version_held",
            "1 for each version that serves; precision is empty as trained",
            labels=[*LABELS, "digest", "backend", "precision"],
        )
        for version in self._versions.all():
            if version.serving is not None:
                names = [version.digest, version.serving.backend, version.precision]
                family.add_metric([*_labels(version), *names], 1)
        return family


Seen = list[tuple[list[str], Snapshot]]


def _labels(version: Version) -> list[str]:
    return [version.key.project, version.key.model, str(version.key.version)]


def _occupancy(residence: Residence) -> Iterator[Metric]:
    """Yield which graphs are in memory, where some may be forgotten."""
    seen = residence.occupancy()
    yield CounterMetricFamily("volary_graphs_evicted", "Graphs that were forgotten", seen.evictions)
    yield GaugeMetricFamily(
        "volary_graphs_held_bytes", "What graphs that may be forgotten hold", seen.held_bytes
    )
    graphs = GaugeMetricFamily("volary_graphs", "Graphs, by where they are", labels=["place"])
    graphs.add_metric(["memory"], seen.resident)
    graphs.add_metric(["disk"], seen.asleep)
    yield graphs
    yield CounterMetricFamily("volary_graph_reads", "Graphs read again", seen.reloads)
    yield CounterMetricFamily(
        "volary_graph_read_seconds", "Time in reading graphs again", seen.reload_s
    )


def _by_reason(name: str, text: str, seen: Seen) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[*LABELS, "reason"])
    for labels, snapshot in seen:
        for reason, count in snapshot.closings.items():
            family.add_metric([*labels, reason], count)
    return family


def _guards(versions: Iterable[Version]) -> Iterator[Metric]:
    """Yield what stands around the versions that declare it."""
    is_open = GaugeMetricFamily(
        "volary_breaker_open", "1 while a version is left in peace", labels=LABELS
    )
    looks = CounterMetricFamily(
        "volary_response_cache_looks", "Looks for a kept reply", labels=[*LABELS, "outcome"]
    )
    kept = CounterMetricFamily(
        "volary_response_cache_troubles", "Looks and replies lost", labels=[*LABELS, "reason"]
    )
    for version in versions:
        guard = version.serving.guard if version.serving is not None else Guard()
        if guard.breaker is not None:
            is_open.add_metric(_labels(version), float(guard.breaker.is_open))
        if guard.responses is not None:
            counts = guard.responses.counts()
            looks.add_metric([*_labels(version), "hit"], counts.hits.count)
            looks.add_metric([*_labels(version), "miss"], counts.misses.count)
            kept.add_metric([*_labels(version), "store_away"], counts.away)
            kept.add_metric([*_labels(version), "reply_too_large"], counts.too_large)
    yield from (is_open, looks, kept)


def _totals(seen: Seen) -> Iterator[CounterMetricFamily]:
    calls = CounterMetricFamily("volary_infer_calls", "Calls", labels=[*LABELS, "outcome"])
    rows = CounterMetricFamily("volary_infer_rows", "Rows that ran", labels=LABELS)
    run = CounterMetricFamily("volary_infer_run_seconds", "Time in runs", labels=LABELS)
    queue = CounterMetricFamily("volary_infer_queue_seconds", "Time in queue", labels=LABELS)
    dropped = CounterMetricFamily(
        "volary_infer_dropped", "Calls that never ran", labels=[*LABELS, "reason"]
    )
    tiers = CounterMetricFamily(
        "volary_infer_fallbacks", "Answers that the model did not give", labels=[*LABELS, "tier"]
    )
    for labels, snapshot in seen:
        for tier, count in snapshot.tiers.items():
            tiers.add_metric([*labels, tier], count)
        calls.add_metric([*labels, "success"], snapshot.success.count)
        calls.add_metric([*labels, "failure"], snapshot.failure.count)
        rows.add_metric(labels, snapshot.rows)
        run.add_metric(labels, snapshot.run.seconds)
        queue.add_metric(labels, snapshot.queue.seconds)
        for reason, count in snapshot.dropped.items():
            dropped.add_metric([*labels, reason], count)
    yield from (calls, rows, run, queue, dropped, tiers)
