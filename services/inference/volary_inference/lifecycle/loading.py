"""From a package to something that serves: load, reproduce the golden rows, warm, batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
from volary_kit.clock import Clock
from volary_kit.documents import check_data
from volary_kit.serving import Serving as Declared

from volary_inference.backends.onnxruntime_cpu import OnnxGraph
from volary_inference.backends.tensorrt import (
    Bindings,
    PlanCache,
    TensorRtGraph,
    require_agreement,
)
from volary_inference.domain.batching import Arrays, Batcher, BatchPolicy, Runner
from volary_inference.domain.decisions import Calibration
from volary_inference.domain.guarding import Guard, guard_of
from volary_inference.domain.predictions import VersionKey
from volary_inference.domain.responses import ReplyStore
from volary_inference.domain.run_times import RunTimes
from volary_inference.domain.statistics import Statistics
from volary_inference.domain.versions import Serving
from volary_inference.domain.warming import GoldenRows, buckets, warm
from volary_inference.lifecycle.crashes import RunJournal, Slot
from volary_inference.lifecycle.package import Package, Reading
from volary_inference.lifecycle.residence import Residence

Graph = OnnxGraph | TensorRtGraph


class Loader:
    """Make packages serve. `open` and `warm` take up to seconds: run them in a thread."""

    def __init__(
        self,
        policy: BatchPolicy,
        clock: Clock,
        journal: RunJournal | None = None,
        residence: Residence | None = None,
        plans: PlanCache | None = None,
        replies: ReplyStore | None = None,
    ) -> None:
        """`plans` says that graphs run on TensorRT, and where its engines are kept.

        `replies` keeps what versions with a response cache have answered.
        """
        self._replies = replies
        self._policy = policy
        self._clock = clock
        self._journal = journal
        self._residence = residence
        self._plans = plans

    @contextmanager
    def noted(self, digest: str) -> Iterator[Slot]:
        """Note in the journal that an artifact is being loaded; give its place to what serves."""
        slot = Slot(None, 0) if self._journal is None else self._journal.slot(digest)
        try:
            with slot:
                yield slot
        except BaseException:
            self._release(slot)
            raise

    def open(self, package: Package) -> Graph:
        """Check and load the graph; raise InvalidArgument `ARTIFACT_REFUSED`.

        On TensorRT also FailedPrecondition `TENSORRT_UNAVAILABLE`, `_UNSUPPORTED`, `_REFUSED`.
        """
        if self._plans is None:
            return OnnxGraph(package.graph)
        sizes = tuple(buckets(self._policy.max_rows))
        digest = package.description.digest
        return TensorRtGraph(package.graph, digest, sizes, self._plans, Bindings.found())

    def warm(self, graph: Graph, package: Package) -> RunTimes:
        """Run the golden rows and every batch size once; return how long each took.

        Raises FailedPrecondition `GOLDEN_MISMATCH`, `TENSORRT_DISAGREES` or `WARM_UP_FAILED`,
        InvalidArgument `GOLDEN_ROWS_INVALID`.
        """
        golden = None
        if package.golden is not None:
            golden = GoldenRows.from_document(package.golden, graph.signature)
        if golden is not None and isinstance(graph, TensorRtGraph):
            require_agreement(graph, golden.inputs, golden.tolerance)
        return warm(graph, graph.signature, self._policy.max_rows, self._clock, golden)

    def guard(self, graph: Graph, package: Package) -> Guard:
        """Build what stands around the graph; raise InvalidArgument where it does not fit."""
        declared = check_data(Declared, package.serving or {}, "serving")
        guard = guard_of(declared, graph.signature, self._clock, self._replies)
        if package.calibration is not None:
            guard.calibration = Calibration.from_document(package.calibration)
        if package.golden is not None and len(graph.signature.inputs) == 1:
            golden = GoldenRows.from_document(package.golden, graph.signature)
            guard.background = golden.inputs.get(graph.signature.inputs[0].name)
        return guard

    def serve(
        self,
        key: VersionKey,
        graph: Graph,
        run_times: RunTimes,
        guard: Guard | None = None,
        slot: Slot | None = None,
        reading: Reading | None = None,
    ) -> Serving:
        """Start the batching thread of a warm graph; `reading` gives its bytes once more."""
        slot = slot or Slot(None, 0)
        held: Runner = graph
        if self._residence is not None and reading is not None and self._plans is None:
            held = self._residence.hold(key, graph, reading.size, lambda: OnnxGraph(reading.read()))
        statistics = Statistics()
        batcher = Batcher(
            f"{key.model}@{key.version}",
            _Noted(held, slot),
            self._policy,
            self._clock,
            statistics,
            is_batched=graph.signature.is_batched,
            run_times=run_times,
        )
        release = partial(self._released, key, slot)
        return Serving(
            graph.signature,
            batcher,
            statistics,
            graph.backend,
            graph.platform,
            guard or Guard(),
            release,
        )

    def _released(self, key: VersionKey, slot: Slot) -> None:
        self._release(slot)
        if self._residence is not None:
            self._residence.remove(key)

    def _release(self, slot: Slot) -> None:
        if self._journal is not None:
            self._journal.release(slot)


class _Noted:
    """Runs a graph, and notes in the journal that it does."""

    def __init__(self, graph: Runner, slot: Slot) -> None:
        self._graph = graph
        self._slot = slot

    def run(self, feeds: Arrays) -> dict[str, np.ndarray]:
        with self._slot:
            return self._graph.run(feeds)
