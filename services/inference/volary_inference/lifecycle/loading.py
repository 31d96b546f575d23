"""From a package to something that serves: load, reproduce the golden rows, warm, batch."""

from __future__ import annotations

from volary_kit.clock import Clock

from volary_inference.backends.onnxruntime_cpu import BACKEND, PLATFORM, OnnxGraph
from volary_inference.domain.batching import Batcher, BatchPolicy
from volary_inference.domain.predictions import VersionKey
from volary_inference.domain.run_times import RunTimes
from volary_inference.domain.statistics import Statistics
from volary_inference.domain.versions import Serving
from volary_inference.domain.warming import GoldenRows, warm
from volary_inference.lifecycle.packages import Package


class Loader:
    """Make packages serve. `open` and `warm` take up to seconds: run them in a thread."""

    def __init__(self, policy: BatchPolicy, clock: Clock) -> None:
        self._policy = policy
        self._clock = clock

    def open(self, package: Package) -> OnnxGraph:
        """Check and load the graph; raise InvalidArgument `ARTIFACT_REFUSED`."""
        return OnnxGraph(package.graph)

    def warm(self, graph: OnnxGraph, package: Package) -> RunTimes:
        """Run the golden rows and every batch size once; return how long each took.

        Raises FailedPrecondition `GOLDEN_MISMATCH` or `WARM_UP_FAILED`, InvalidArgument
        `GOLDEN_ROWS_INVALID`.
        """
        golden = None
        if package.golden is not None:
            golden = GoldenRows.from_document(package.golden, graph.signature)
        return warm(graph, graph.signature, self._policy.max_rows, self._clock, golden)

    def serve(self, key: VersionKey, graph: OnnxGraph, run_times: RunTimes) -> Serving:
        """Start the batching thread of a warm graph."""
        statistics = Statistics()
        batcher = Batcher(
            f"{key.model}@{key.version}",
            graph,
            self._policy,
            self._clock,
            statistics,
            is_batched=graph.signature.is_batched,
            run_times=run_times,
        )
        return Serving(graph.signature, batcher, statistics, BACKEND, PLATFORM)
