"""A memory budget for graphs: the least recently used is forgotten, and read again when asked.

A version whose graph was forgotten stays ready: its batching thread, statistics and guard remain,
and the first call that comes reads the graph from the replica's own disk before it runs. Versions
in production are never forgotten.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from volary_kit.errors import VolaryError
from volary_kit.waiting import about_to_wait

from volary_inference.domain.batching import Arrays, RunFailed, Runner
from volary_inference.domain.predictions import VersionKey

log = logging.getLogger(__name__)
# a session holds its constants once, and 114 KiB when it has none to speak of (seen with
# onnxruntime 1.31: 300 sessions of a graph of 300 bytes took 33 MiB)
SESSION_BYTES = 128 << 10
COPIES = 2  # while it is optimised a graph is there twice


class Residence:
    """The graphs in memory, in order of use."""

    def __init__(self, budget_bytes: int, is_pinned: Callable[[VersionKey], bool]) -> None:
        self._budget_bytes = budget_bytes
        self._is_pinned = is_pinned
        self._lock = threading.Lock()
        self._resident: OrderedDict[VersionKey, ResidentGraph] = OrderedDict()
        self._held_bytes = 0
        self._evictions = 0

    @property
    def evictions(self) -> int:
        """How often a graph was forgotten."""
        return self._evictions

    @property
    def bytes_held(self) -> int:
        """What the graphs in memory are taken to hold."""
        return self._held_bytes

    def hold(self, key: VersionKey, graph: Runner, size: int, reload: Reload) -> Runner:
        """Return what runs a graph; without a budget that is the graph itself."""
        if self._budget_bytes == 0:
            return graph
        resident = ResidentGraph(key, graph, SESSION_BYTES + COPIES * size, reload, self)
        self.used(resident)
        return resident

    def used(self, graph: ResidentGraph) -> None:
        """Put a graph last in the order, and forget the first ones while there are too many."""
        with self._lock:
            self._drop(graph.key)
            self._resident[graph.key] = graph
            self._held_bytes += graph.size_bytes
            if self._held_bytes <= self._budget_bytes:
                return
            for key, each in list(self._resident.items()):
                if each is graph or self._is_pinned(key) or not each.forget():
                    continue
                self._drop(key)
                self._evictions += 1
                log.info("%s is forgotten until it is asked", key.name)
                if self._held_bytes <= self._budget_bytes:
                    return

    def remove(self, key: VersionKey) -> None:
        """Forget a version that goes away."""
        with self._lock:
            self._drop(key)

    def _drop(self, key: VersionKey) -> None:
        gone = self._resident.pop(key, None)
        if gone is not None:
            self._held_bytes -= gone.size_bytes


Reload = Callable[[], Runner]


class ResidentGraph:
    """A graph that may be forgotten between two runs; only its batching thread runs it."""

    def __init__(
        self,
        key: VersionKey,
        graph: Runner,
        size_bytes: int,
        reload: Reload,
        residence: Residence,
    ) -> None:
        self.key = key
        self.size_bytes = size_bytes
        self._graph: Runner | None = graph
        self._reload = reload
        self._residence = residence
        self._running = threading.Lock()

    @property
    def is_here(self) -> bool:
        """True while it is in memory."""
        return self._graph is not None

    def run(self, feeds: Arrays) -> dict[str, np.ndarray]:
        """Run it, after reading it again where it was forgotten; raise RunFailed."""
        with self._running:
            graph = self._graph
            if graph is None:
                about_to_wait()
                try:
                    graph = self._graph = self._reload()
                except (VolaryError, OSError) as error:
                    raise RunFailed(f"the graph cannot be read again: {error}") from error
            outputs = graph.run(feeds)
        self._residence.used(self)
        return outputs

    def forget(self) -> bool:
        """Let go of the graph unless it runs; say whether it did."""
        if not self._running.acquire(blocking=False):
            return False
        try:
            self._graph = None
            return True
        finally:
            self._running.release()
