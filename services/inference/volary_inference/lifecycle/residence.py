"""Graphs that come into memory when they are asked, and leave it when they are not.

Beyond a budget of memory the least recently used graph is forgotten, and after a time without a
call each one is. Such a version stays ready: its queue, statistics and guard remain, and the first
call that comes reads the graph from the replica's own disk before it runs. Pinned versions, those
in production unless the settings say otherwise, are never forgotten.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from volary_kit.clock import Clock
from volary_kit.errors import VolaryError
from volary_kit.waiting import about_to_wait

from volary_inference.domain.batching import Arrays, RunFailed, Runner
from volary_inference.domain.predictions import VersionKey

log = logging.getLogger(__name__)
# a session holds its constants once, and 114 KiB when it has none to speak of (seen with
# onnxruntime 1.31: 300 sessions of a graph of 300 bytes took 33 MiB)
SESSION_BYTES = 128 << 10
COPIES = 2  # while it is optimised a graph is there twice
Reload = Callable[[], Runner]


@dataclass(frozen=True)
class Bounds:
    """What graphs may hold in memory, and how long one stays without a call; 0: no bound."""

    budget_bytes: int = 0
    idle_s: float = 0.0

    @property
    def are_set(self) -> bool:
        """True when a graph may be forgotten at all."""
        return self.budget_bytes > 0 or self.idle_s > 0


@dataclass(frozen=True)
class Occupancy:
    """Which graphs are in memory, and how often they came and went."""

    resident: int
    asleep: int
    held_bytes: int
    evictions: int
    reloads: int
    reload_s: float


class Residence:
    """The graphs in memory, in order of use."""

    def __init__(
        self, bounds: Bounds, clock: Clock, is_pinned: Callable[[VersionKey], bool]
    ) -> None:
        self._bounds = bounds
        self._clock = clock
        self._is_pinned = is_pinned
        self._lock = threading.Lock()
        self._graphs: dict[VersionKey, ResidentGraph] = {}
        self._resident: OrderedDict[VersionKey, ResidentGraph] = OrderedDict()
        self._held_bytes = 0
        self._evictions = self._reloads = 0
        self._reload_s = 0.0

    @property
    def is_bounded(self) -> bool:
        """True when a graph may be forgotten."""
        return self._bounds.are_set

    def occupancy(self) -> Occupancy:
        """Return the counts as they are now."""
        with self._lock:
            here = len(self._resident)
            return Occupancy(
                resident=here,
                asleep=len(self._graphs) - here,
                held_bytes=self._held_bytes,
                evictions=self._evictions,
                reloads=self._reloads,
                reload_s=self._reload_s,
            )

    def may_sleep(self, key: VersionKey, size: int) -> bool:
        """Say whether a graph of so many bytes waits for its first call: there is no room now."""
        budget = self._bounds.budget_bytes
        if budget == 0 or self._is_pinned(key):
            return False
        with self._lock:
            return self._held_bytes + _held(size) > budget

    def hold(self, key: VersionKey, graph: Runner | None, size: int, reload: Reload) -> Runner:
        """Return what runs a graph, None for one that is asleep; without bounds it is itself."""
        if graph is not None and not self._bounds.are_set:
            return graph
        held = ResidentGraph(key, graph, _held(size), reload, self)
        with self._lock:
            self._graphs[key] = held
        if graph is not None:
            self.used(held)
        return held

    def is_wanted(self, key: VersionKey) -> bool:
        """Say whether a graph is asleep that has become a pinned one."""
        held = self._graphs.get(key)
        return held is not None and not held.is_here and self._is_pinned(key)

    def wake(self, key: VersionKey) -> None:
        """Read a graph now; raise RunFailed."""
        held = self._graphs.get(key)
        if held is not None:
            held.wake()

    def used(self, graph: ResidentGraph) -> None:
        """Put a graph last in the order, and forget the first ones while there are too many."""
        with self._lock:
            self._drop(graph.key)
            if self._graphs.get(graph.key) is not graph:
                return  # its version is gone
            graph.used_s = self._clock.monotonic_s()
            self._resident[graph.key] = graph
            self._held_bytes += graph.size_bytes
            if self._bounds.budget_bytes:
                self._make_room(graph)

    def forget_idle(self) -> None:
        """Forget what nobody asked for so long."""
        if self._bounds.idle_s <= 0:
            return
        with self._lock:
            used_before_s = self._clock.monotonic_s() - self._bounds.idle_s
            for each in list(self._resident.values()):
                if each.used_s > used_before_s:
                    return
                self._forget(each)

    def reloaded(self, seconds: float) -> None:
        """Count a graph that was read again."""
        with self._lock:
            self._reloads += 1
            self._reload_s += seconds

    def lost(self, graph: ResidentGraph) -> None:
        """Note a graph that could not be read: it holds nothing."""
        with self._lock:
            self._drop(graph.key)

    def remove(self, key: VersionKey) -> None:
        """Forget a version that goes away."""
        with self._lock:
            self._graphs.pop(key, None)
            self._drop(key)

    def now_s(self) -> float:
        """Return the time by which use and reading are measured."""
        return self._clock.monotonic_s()

    def _make_room(self, graph: ResidentGraph) -> None:
        for each in list(self._resident.values()):
            if self._held_bytes <= self._bounds.budget_bytes:
                return
            if each is not graph:
                self._forget(each)

    def _forget(self, graph: ResidentGraph) -> None:
        if self._is_pinned(graph.key) or not graph.forget():
            return
        self._drop(graph.key)
        self._evictions += 1
        log.debug("%s is forgotten until it is asked", graph.key.name)

    def _drop(self, key: VersionKey) -> None:
        gone = self._resident.pop(key, None)
        if gone is not None:
            self._held_bytes -= gone.size_bytes


def _held(size: int) -> int:
    return SESSION_BYTES + COPIES * size


class ResidentGraph:
    """A graph that may be forgotten between two runs; only its batching thread runs it."""

    def __init__(
        self,
        key: VersionKey,
        graph: Runner | None,
        size_bytes: int,
        reload: Reload,
        residence: Residence,
    ) -> None:
        self.key = key
        self.size_bytes = size_bytes
        self.used_s = 0.0
        self._graph = graph
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
            outputs = self._here().run(feeds)
        self._residence.used(self)
        return outputs

    def wake(self) -> None:
        """Read it where it is not in memory; raise RunFailed."""
        with self._running:
            self._here()

    def forget(self) -> bool:
        """Let go of the graph unless it runs; say whether it did."""
        if not self._running.acquire(blocking=False):
            return False
        try:
            self._graph = None
            return True
        finally:
            self._running.release()

    def _here(self) -> Runner:
        if self._graph is None:
            about_to_wait()
            self._residence.used(self)  # room is made before it is taken
            began_s = self._residence.now_s()
            try:
                self._graph = self._reload()
            except (VolaryError, OSError) as error:
                self._residence.lost(self)
                raise RunFailed(f"the graph cannot be read again: {error}") from error
            self._residence.reloaded(self._residence.now_s() - began_s)
        return self._graph
