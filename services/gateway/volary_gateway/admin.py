"""What Envoy says of itself on its admin port."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from volary_kit.clock import Clock

from volary_gateway.domain.completeness import Poll

TIMEOUT_S = 1.0
LOOK_AGAIN_S = 0.05
ENDED = ("upstream_rq_pending_failure_eject", "upstream_rq_pending_overflow")
VERSION_STATS = (
    "^(cluster\\.version/.*\\.upstream_rq_(total|active|pending_failure_eject|pending_overflow)"
    "|access_logs\\.grpc_access_log\\.logs_dropped|server\\.uptime)$"
)


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
            stats = await self._stats(f"^cluster\\.({named})\\.membership_healthy$")
            if stats is None:
                return ()
            waiting = tuple(
                c for c in waiting if stats.get(f"cluster.{c}.membership_healthy", 0) <= spare
            )
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
            for cluster in _clusters(stats)
        }
        return Reading(
            polls,
            stats.get("access_logs.grpc_access_log.logs_dropped", 0),
            stats.get("server.uptime", 0),
            began_us,
        )

    async def _stats(self, pattern: str) -> dict[str, int] | None:
        if self._address is None:
            return None
        # what was never touched is not written out: nearly everything, at thousands of models
        query = urllib.parse.urlencode({"format": "json", "filter": pattern}) + "&usedonly"
        try:
            return await asyncio.to_thread(_fetch, f"http://{self._address}/stats?{query}")
        except (OSError, ValueError):
            return None


def _fetch(url: str) -> dict[str, int]:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as reply:  # noqa: S310 - our own Envoy
        rows = json.load(reply)["stats"]
    return {row["name"]: row["value"] for row in rows if "name" in row}


def _clusters(stats: Mapping[str, int]) -> set[str]:
    suffix = ".upstream_rq_total"
    return {
        name.removeprefix("cluster.").removesuffix(suffix)
        for name in stats
        if name.endswith(suffix)
    }


def _ended(stats: Mapping[str, int], cluster: str) -> int:
    """Return the attempts that ended; one that never got a connection is an attempt, too."""
    begun = stats.get(f"cluster.{cluster}.upstream_rq_total", 0)
    running = stats.get(f"cluster.{cluster}.upstream_rq_active", 0)
    return begun - running + sum(stats.get(f"cluster.{cluster}.{name}", 0) for name in ENDED)
