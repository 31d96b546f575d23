"""What Envoy says of itself on its admin port."""

from __future__ import annotations

import asyncio
import re
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from volary_kit.clock import Clock

from volary_gateway.domain.completeness import Poll

TIMEOUT_S = 1.0
LOOK_AGAIN_S = 0.05
BEGUN, RUNNING = "upstream_rq_total", "upstream_rq_active"
ENDED = ("upstream_rq_pending_failure_eject", "upstream_rq_pending_overflow")
HEALTHY = "membership_healthy"
DROPPED, UPTIME = ("", "access_logs_grpc_access_log_logs_dropped"), ("", "server_uptime")
VERSION_STATS = (
    "^(cluster\\.version/.*\\.upstream_rq_(total|active|pending_failure_eject|pending_overflow)"
    "|access_logs\\.grpc_access_log\\.logs_dropped|server\\.uptime)$"
)
OF_CLUSTER = re.compile(r'envoy_cluster_(\w+)\{envoy_cluster_name="([^"]*)"\} (\d+)')
OF_ENVOY = re.compile(r"envoy_(\w+)\{\} (\d+)")
Stats = Mapping[tuple[str, str], int]  # by cluster, empty for Envoy's own, and name


@dataclass(frozen=True, slots=True)
class Reading:
    """Envoy's counters of ended attempts by cluster, and how long it has run.

    A cluster that is not in it has made no attempt since Envoy began.
    """

    polls: Mapping[str, Poll]
    dropped: int
    uptime_s: int
    began_us: int  # when Envoy was asked: of later attempts it says nothing


class EnvoyAdmin:
    """Read Envoy's counters; without an address it knows nothing and says so."""

    def __init__(self, address: str | None, clock: Clock) -> None:
        self._address = address
        self._clock = clock

    async def without_hosts(
        self, clusters: Iterable[str], timeout_s: float, spare: int = 0
    ) -> tuple[str, ...]:
        """Wait until each cluster has a healthy host beyond `spare` ones; return those without.

        Without an admin address, or when it does not answer, every cluster counts as seen:
        Envoy's acknowledgement is then all that is known.
        """
        waiting = tuple(clusters)
        end_s = self._clock.monotonic_s() + timeout_s
        while waiting:
            named = "|".join(re.escape(cluster) for cluster in waiting)
            stats = await self._stats(f"^cluster\\.({named})\\.{HEALTHY}$")
            if stats is None:
                return ()
            waiting = tuple(c for c in waiting if stats.get((c, HEALTHY), 0) <= spare)
            if waiting and self._clock.monotonic_s() > end_s:
                break
            if waiting:
                await asyncio.sleep(LOOK_AGAIN_S)
        return waiting

    async def in_flight(self, cluster: str) -> int | None:
        """Return how many calls a cluster has that have not ended, None without an answer."""
        name = re.escape(f"cluster.{cluster}.upstream_rq_")
        stats = await self._stats(f"^{name}(pending_)?active$")
        return None if stats is None else sum(stats.values())

    async def read(self) -> Reading | None:
        """Return the counters, None when Envoy does not answer."""
        began_us = self._clock.now_us()
        stats = await self._stats(VERSION_STATS)
        ended_us = self._clock.now_us()
        if stats is None:
            return None
        polls = {
            cluster: Poll(began_us, ended_us, _ended(stats, cluster))
            for cluster, name in stats
            if name == BEGUN
        }
        return Reading(
            polls,
            stats.get(DROPPED, 0),
            stats.get(UPTIME, 0),
            began_us,
        )

    async def _stats(self, pattern: str) -> Stats | None:
        """Return the counters whose name has a pattern, None without an answer.

        In the form for Prometheus, which Envoy writes from a list of what was touched: for its
        own forms it looks through every cluster, tens of milliseconds at thousands of models, in
        the thread that takes pushes.
        """
        if self._address is None:
            return None
        query = urllib.parse.urlencode({"filter": pattern}) + "&usedonly"
        try:
            return await asyncio.to_thread(
                _fetch, f"http://{self._address}/stats/prometheus?{query}"
            )
        except (OSError, ValueError):
            return None


def _fetch(url: str) -> Stats:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as reply:  # noqa: S310 - our own Envoy
        text = reply.read().decode()
    of_clusters = {(m[2], m[1]): int(m[3]) for m in OF_CLUSTER.finditer(text)}
    return of_clusters | {("", m[1]): int(m[2]) for m in OF_ENVOY.finditer(text)}


def _ended(stats: Stats, cluster: str) -> int:
    """Return the attempts that ended; one that never got a connection is an attempt, too."""
    begun = stats.get((cluster, BEGUN), 0)
    running = stats.get((cluster, RUNNING), 0)
    return begun - running + sum(stats.get((cluster, name), 0) for name in ENDED)
