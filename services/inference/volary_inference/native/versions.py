"""Versions in the native engine: loaded beside the Python session, held to the same bits."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import replace
from weakref import WeakKeyDictionary

import numpy as np
from volary_kit.clock import Clock

from volary_inference.domain.batching import BatchPolicy, Runner
from volary_inference.domain.datatypes import DATATYPES
from volary_inference.domain.decisions import Calibration
from volary_inference.domain.failpoints import Failpoints
from volary_inference.domain.guarding import Guard, Keeper
from volary_inference.domain.predictions import VersionKey
from volary_inference.domain.responses import ReplyStore
from volary_inference.domain.run_times import RunTimes
from volary_inference.domain.signatures import Signature, TensorSpec
from volary_inference.domain.statistics import Snapshot, Total
from volary_inference.domain.versions import Serving, Version, Versions
from volary_inference.domain.warming import MEASURED_RUNS, GoldenRows, batch_sizes, feeds_of
from volary_inference.lifecycle.crashes import RunJournal, Slot
from volary_inference.lifecycle.loading import Graph, Loader
from volary_inference.lifecycle.package import Package, Reading
from volary_inference.lifecycle.residence import Residence
from volary_inference.native.module import DataPlane, NativeModule, NativeVersion

log = logging.getLogger(__name__)
MICROS = 1_000_000
TEXT = "BYTES"
SHARES = (0.1, 0.5, 0.7)  # of the way from one point of a calibration to the next
Arrays = Mapping[str, np.ndarray]


class NativeTwin:
    """A version's other half, in the native engine."""

    def __init__(self, native: NativeVersion) -> None:
        self.native = native

    def close(self, timeout_s: float) -> bool:
        """Take no more, answer what is queued; say whether all was answered in time."""
        return self.native.close(timeout_s)

    def snapshot(self) -> Snapshot:
        """Return its counters as they are now."""
        seen = self.native.statistics()
        return Snapshot(
            success=Total(*seen.success),
            failure=Total(*seen.failure),
            queue=Total(*seen.queue),
            run=Total(*seen.run),
            rows=seen.rows,
            last_us=seen.last_us,
            by_batch_size={size: Total(*each) for size, each in seen.by_batch_size.items()},
            closings=seen.closings,
            dropped=seen.dropped,
            recent_queue_s=seen.recent_queue_s,
        )


class NativeLoader(Loader):
    """Loads each version twice; one that comes out differently here is Python's alone."""

    def __init__(
        self,
        module: NativeModule,
        policy: BatchPolicy,
        clock: Clock,
        journal: RunJournal | None = None,
        residence: Residence | None = None,
        replies: ReplyStore | None = None,
        keeper: Keeper | None = None,
    ) -> None:
        super().__init__(policy, clock, journal, residence, replies=replies, keeper=keeper)
        self._module = module
        self._batches = policy
        self._loaded: WeakKeyDictionary[Graph, NativeVersion] = WeakKeyDictionary()

    def warm(self, graph: Graph, package: Package) -> RunTimes:
        """Warm the Python session, then the native one, and compare what they answer."""
        run_times = super().warm(graph, package)
        native = self._native(graph, package)
        if native is not None:
            self._loaded[graph] = native
        return run_times

    def serve(
        self,
        key: VersionKey,
        graph: Graph,
        run_times: RunTimes,
        guard: Guard | None = None,
        slot: Slot | None = None,
        reading: Reading | None = None,
    ) -> Serving:
        """Start the batching threads of a warm graph.

        A version whose answers depend on those before them is Python's alone.
        """
        serving = super().serve(key, graph, run_times, guard, slot, reading)
        native = self._loaded.pop(graph, None)
        if native is None or not serving.guard.is_plain:
            return serving
        bands = serving.guard.bands
        declared = [] if bands is None else [(b.below, b.code, b.action) for b in bands.bands]
        native.declare(declared, serving.guard.has_tiers)
        serving = self._noting(serving, native, slot)
        native.start(f"{key.model}@{key.version}")
        return replace(serving, twin=NativeTwin(native))

    def _noting(self, serving: Serving, native: NativeVersion, slot: Slot | None) -> Serving:
        """Have the native runs noted beside the Python ones, each in a place of its own."""
        if self._journal is None or slot is None:
            return serving
        own = self._journal.slot_beside(slot)
        if not own.is_noted:
            return serving
        native.note_in(self._journal.path, own.at)

        def release() -> None:
            serving.release()
            self._release(own)

        return replace(serving, release=release)

    def _native(self, graph: Graph, package: Package) -> NativeVersion | None:
        signature, name = graph.signature, package.description.digest
        if any(spec.datatype == TEXT for spec in (*signature.inputs, *signature.outputs)):
            log.info("%s takes or gives text: the Python engine runs it", name)
            return None
        if package.description.precision:
            # a reply says which variant answered, and this engine's has no word for it
            log.info("%s is a variant: the Python engine runs it", name)
            return None
        try:
            return self._checked(graph, package)
        except (RuntimeError, ValueError) as error:
            log.warning("%s runs in the Python engine: %s", name, error)
            return None

    def _checked(self, graph: Graph, package: Package) -> NativeVersion:
        """Load and warm the native session; raise ValueError when it answers otherwise."""
        signature = graph.signature
        calibration = None
        if package.calibration is not None:
            calibration = Calibration.from_document(package.calibration)
        native: NativeVersion = self._module.NativeVersion(
            package.graph,
            [_row(spec) for spec in signature.inputs],
            [_row(spec) for spec in signature.outputs],
            None if calibration is None else (calibration.scores, calibration.probabilities),
            self._batches.max_rows,
            int(self._batches.max_delay_s * MICROS),
        )
        if calibration is not None:
            _compare(native, calibration)
        golden = None
        if package.golden is not None:
            golden = GoldenRows.from_document(package.golden, signature)
        _warm(native, graph, signature, self._batches.max_rows, golden)
        return native


def _row(spec: TensorSpec) -> tuple[str, str, list[int]]:
    return spec.name, spec.datatype, list(spec.shape)


def _warm(
    native: NativeVersion,
    graph: Runner,
    signature: Signature,
    max_rows: int,
    golden: GoldenRows | None,
) -> None:
    """Run each batch size; raise ValueError when a bit differs from the other session."""
    for rows in batch_sizes(signature, max_rows):
        feeds = feeds_of(signature, rows, golden)
        arrays = [feeds[spec.name] for spec in signature.inputs]
        inputs = [
            (list(array.shape), np.ascontiguousarray(array, _dtype(spec)).tobytes())
            for spec, array in zip(signature.inputs, arrays, strict=True)
        ]
        native.run(inputs, rows, False)  # the first run of a size reserves memory
        for _ in range(MEASURED_RUNS - 1):
            native.run(inputs, rows, True)
        found, expected = native.run(inputs, rows, True), graph.run(feeds)
        for spec, (shape, data) in zip(signature.outputs, found, strict=True):
            wanted = np.ascontiguousarray(expected[spec.name], _dtype(spec))
            if tuple(shape) != wanted.shape or data != wanted.tobytes():
                raise ValueError(f"{spec.name} of {rows} rows differs between the engines")


def _compare(native: NativeVersion, calibration: Calibration) -> None:
    """Raise ValueError when a score gets another probability than from numpy."""
    points = np.array(calibration.scores)
    between = [points + share * np.diff(points, append=points[-1] + 1) for share in SHARES]
    scores = np.concatenate([points, points[:1] - 1, *between])
    if native.calibrated(scores.tolist()) != calibration.probability(scores).tolist():
        raise ValueError("a calibrated score differs between the engines")


def _dtype(spec: TensorSpec) -> np.dtype:
    return DATATYPES[spec.datatype].dtype


class NativeTable:
    """Tells the plane which versions answer there, whenever that changes.

    A version with a failpoint is left to Python, which injects the fault.
    """

    def __init__(self, plane: DataPlane, versions: Versions, failpoints: Failpoints) -> None:
        self._plane = plane
        self._versions = versions
        self._failpoints = failpoints
        self._lock = threading.Lock()
        versions.on_change(self.publish)
        failpoints.on_change(self.publish)

    def publish(self) -> None:
        """Hand over the table as it is now."""
        with self._lock:  # the last one to publish has seen all that was before it
            production = [
                (model.project, model.model, number)
                for model, number in self._versions.production().items()
            ]
            self._plane.publish(list(self._rows()), production)

    def _rows(self) -> list[tuple[str, str, int, str, NativeVersion]]:
        rows: list[tuple[str, str, int, str, NativeVersion]] = []
        for version in self._versions.all():
            native = native_of(version)
            if native is not None and not self._failpoints.hits(version.key):
                key = version.key
                rows.append((key.project, key.model, key.version, version.digest, native))
        return rows


def native_of(version: Version) -> NativeVersion | None:
    """Return what a ready version runs with in the native engine, None when it does not."""
    if not version.is_ready or version.serving is None:
        return None
    twin = version.serving.twin
    return twin.native if isinstance(twin, NativeTwin) else None
