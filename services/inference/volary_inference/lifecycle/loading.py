"""From a package to something that serves: load, reproduce the golden rows, warm, batch."""

from __future__ import annotations

from volary_kit.clock import Clock

from volary_inference.backends.onnxruntime_cpu import BACKEND, PLATFORM, OnnxGraph
from volary_inference.domain.batching import Batcher, BatchPolicy
from volary_inference.domain.predictions import VersionKey
from volary_inference.domain.statistics import Statistics
from volary_inference.domain.versions import Serving
from volary_inference.domain.warming import GoldenRows, warm
from volary_inference.lifecycle.packages import Package


class Loader:
    """Make packages serve; runs in a thread of its own, seconds at worst."""

    def __init__(self, policy: BatchPolicy, clock: Clock) -> None:
        self._policy = policy
        self._clock = clock

    def open(self, package: Package) -> OnnxGraph:
        """Check and load the graph; raise InvalidArgument `ARTIFACT_REFUSED`."""
        return OnnxGraph(package.graph)

    def warm(self, key: VersionKey, graph: OnnxGraph, package: Package) -> Serving:
        """Run every batch size once and start batching.

        Raises FailedPrecondition `GOLDEN_MISMATCH` or `WARM_UP_FAILED`, InvalidArgument
        `GOLDEN_ROWS_INVALID`.
        """
        signature = graph.signature
        golden = None
        if package.golden is not None:
            golden = GoldenRows.from_document(package.golden, signature)
        times = warm(graph, signature, self._policy.max_rows, self._clock, golden)
        statistics = Statistics()
        batcher = Batcher(
            f"{key.model}@{key.version}",
            graph,
            self._policy,
            self._clock,
            statistics,
            is_batched=signature.is_batched,
            run_times=times,
        )
        return Serving(signature, batcher, statistics, BACKEND, PLATFORM)
