"""From a package to something that serves: load, reproduce the golden rows, warm, batch."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
from volary_kit.clock import Clock
from volary_kit.documents import check_data
from volary_kit.errors import FailedPrecondition
from volary_kit.serving import Serving as Declared

from volary_inference.backends.onnxruntime_cpu import OnnxGraph
from volary_inference.backends.onnxruntime_cuda import CudaGraph
from volary_inference.backends.tensorrt import (
    Bindings,
    PlanCache,
    TensorRtGraph,
    require_agreement,
)
from volary_inference.domain.batching import Arrays, Batcher, BatchPolicy, RunFailed, Runner
from volary_inference.domain.decisions import Calibration
from volary_inference.domain.guarding import Guard, Keeper, guard_of
from volary_inference.domain.instances import Instances
from volary_inference.domain.predictions import VersionKey
from volary_inference.domain.responses import ReplyStore
from volary_inference.domain.run_times import RunTimes
from volary_inference.domain.signatures import Signature
from volary_inference.domain.statistics import Statistics
from volary_inference.domain.versions import Serving
from volary_inference.domain.warming import GoldenRows, buckets, warm
from volary_inference.lifecycle.crashes import RunJournal, Slot
from volary_inference.lifecycle.package import Package, Reading
from volary_inference.lifecycle.residence import Residence
from volary_inference.lifecycle.verdicts import Verdict

log = logging.getLogger(__name__)
Graph = OnnxGraph | CudaGraph | TensorRtGraph


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
        *,
        keeper: Keeper | None = None,
        is_on_cuda: bool = False,
    ) -> None:
        """`plans` says that graphs run on TensorRT, and where its engines are kept.

        `replies` keeps what versions with a response cache have answered, `keeper` what those with
        a cached fallback said last.
        """
        self._keeper = keeper
        self._replies = replies
        self._is_on_cuda = is_on_cuda
        self._policy = policy
        self._clock = clock
        self._journal = journal
        self._residence = residence
        self._plans = plans

    @property
    def _is_on_gpu(self) -> bool:
        return self._is_on_cuda or self._plans is not None

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

        On CUDA also FailedPrecondition `CUDA_UNAVAILABLE`.
        On TensorRT also FailedPrecondition `TENSORRT_UNAVAILABLE`, `_UNSUPPORTED`, `_REFUSED`.
        """
        if self._is_on_cuda:
            return CudaGraph(package.graph)
        if self._plans is None:
            return OnnxGraph(package.graph)
        sizes = tuple(buckets(self._policy.max_rows))
        digest = package.description.digest
        return TensorRtGraph(package.graph, digest, sizes, self._plans, Bindings.found())

    def warm(self, graph: Graph, package: Package) -> RunTimes:
        """Run the golden rows and every batch size once; return how long each took.

        Raises FailedPrecondition `GOLDEN_MISMATCH`, `WARM_UP_FAILED`, `TENSORRT_DISAGREES` or
        `CUDA_DISAGREES`, InvalidArgument `GOLDEN_ROWS_INVALID`.
        """
        golden = None
        if package.golden is not None:
            golden = GoldenRows.from_document(package.golden, graph.signature)
        if golden is not None and isinstance(graph, TensorRtGraph | CudaGraph):
            require_agreement(graph, golden.inputs, golden.tolerance)
        return warm(graph, graph.signature, self._policy.max_rows, self._clock, golden)

    def may_sleep(self, key: VersionKey, package: Package) -> bool:
        """Say whether a version waits for its first call before its graph comes into memory."""
        return (
            self._residence is not None
            and not self._is_on_gpu
            and package.reading is not None
            and self._residence.may_sleep(key, package.reading.size)
        )

    def is_wanted_awake(self, key: VersionKey) -> bool:
        """Say whether a version's graph is not in memory, and from now on has to be."""
        return self._residence is not None and self._residence.is_wanted(key)

    def wake(self, key: VersionKey) -> None:
        """Have a version's graph in memory that was forgotten; takes as long as a load."""
        if self._residence is None:
            return
        try:
            self._residence.wake(key)
        except RunFailed as error:  # its calls will fail for the same cause, and say so
            log.warning("%s: %s", key.name, error)

    def guard(self, signature: Signature, package: Package) -> Guard:
        """Build what stands around the graph; raise InvalidArgument where it does not fit."""
        declared = check_data(Declared, package.serving or {}, "serving")
        guard = guard_of(declared, signature, self._clock, self._replies, self._keeper)
        guard.instances = declared.instances
        if package.calibration is not None:
            guard.calibration = Calibration.from_document(package.calibration)
        if package.golden is not None and len(signature.inputs) == 1:
            golden = GoldenRows.from_document(package.golden, signature)
            guard.background = golden.inputs.get(signature.inputs[0].name)
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
        held: Runner = graph
        if self._residence is not None and reading is not None and not self._is_on_gpu:
            reload = partial(_read_again, reading, graph.signature)
            held = self._residence.hold(key, graph, reading.size, reload)
        announced = _Announced(graph.signature, graph.backend, graph.platform)
        return self._started(key, held, announced, run_times, guard, slot)

    def asleep(
        self, key: VersionKey, verdict: Verdict, package: Package, guard: Guard, slot: Slot
    ) -> Serving:
        """Start a version by what its trial found; its first call reads the graph."""
        if self._residence is None or package.reading is None:
            raise ValueError("what sleeps needs a residence and a file to be read again")
        reading, signature = package.reading, verdict.signature
        reload = partial(_read_again, reading, signature)
        held = self._residence.hold(key, None, reading.size, reload)
        announced = _Announced(signature, OnnxGraph.backend, OnnxGraph.platform)
        # what a run takes is learned from the first ones, as on any other day
        return self._started(key, held, announced, RunTimes(), guard, slot)

    def _started(
        self,
        key: VersionKey,
        held: Runner,
        announced: _Announced,
        run_times: RunTimes,
        guard: Guard | None,
        slot: Slot | None,
    ) -> Serving:
        guard, slot = guard or Guard(), slot or Slot(None, 0)
        slots = [slot, *self._further_slots(slot, guard.instances)]
        statistics = Statistics()
        batchers = [
            Batcher(
                f"{key.model}@{key.version}",
                _Noted(held, each),
                self._policy,
                self._clock,
                statistics,
                is_batched=announced.signature.is_batched,
                run_times=run_times,
            )
            for each in slots
        ]
        return Serving(
            announced.signature,
            batchers[0] if len(batchers) == 1 else Instances(batchers),
            statistics,
            announced.backend,
            announced.platform,
            guard,
            partial(self._released, key, slots),
            instances=len(batchers),
        )

    def _further_slots(self, first: Slot, instances: int) -> list[Slot]:
        """Return a place in the journal for each instance but the first.

        A graph on a GPU has one stream, and one that may be forgotten runs in one thread.
        """
        if self._is_on_gpu or (self._residence is not None and self._residence.is_bounded):
            return []
        if self._journal is None:
            return [Slot(None, 0)] * (instances - 1)
        return [self._journal.slot_beside(first) for _ in range(instances - 1)]

    def _released(self, key: VersionKey, slots: Sequence[Slot]) -> None:
        for slot in slots:
            self._release(slot)
        if self._residence is not None:
            self._residence.remove(key)

    def _release(self, slot: Slot) -> None:
        if self._journal is not None:
            self._journal.release(slot)


@dataclass(frozen=True)
class _Announced:
    """What is said of a graph that may not be in memory."""

    signature: Signature
    backend: str
    platform: str


def _read_again(reading: Reading, expected: Signature) -> OnnxGraph:
    graph = OnnxGraph(reading.read())
    if graph.signature != expected:
        raise FailedPrecondition("SIGNATURE_CHANGED", "the graph takes or gives something else")
    return graph


class _Noted:
    """Runs a graph, and notes in the journal that it does."""

    def __init__(self, graph: Runner, slot: Slot) -> None:
        self._graph = graph
        self._slot = slot

    def run(self, feeds: Arrays) -> dict[str, np.ndarray]:
        with self._slot:
            return self._graph.run(feeds)
