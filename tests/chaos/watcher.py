"""An observer that holds Envoy's own counts against what the replicas have reported.

For each version Envoy counts the attempts at each host. A replica that restarts is another life
at the same address: what it holds it has to report anew.
"""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from volary.gateway.v1 import replica_pb2
from volary_gateway.domain.names import VersionName
from volary_kit.errors import VolaryError

from tests.chaos.mesh import RolloutMesh

LOOK_S = 0.1
FETCH_S = 1.0
Place = tuple[int, str]  # version, address of a replica


@dataclass
class Life:
    """What one process at an address has reported."""

    incarnation: str
    ready: frozenset[int]


@dataclass
class Seen:
    """What the observer found; `unready` must stay empty, `bare` too."""

    looks: int = 0
    attempts: int = 0
    unready: list[str] = field(default_factory=list)
    bare: list[str] = field(default_factory=list)
    generations: list[int] = field(default_factory=list)


class Watcher:
    """Look ten times a second; a look that nobody answers says nothing."""

    def __init__(self, mesh: RolloutMesh) -> None:
        self._mesh = mesh
        self._seen = Seen()
        self._ever_ready: set[Place] = set()
        self._attempts: dict[Place, int] = {}
        self._lives: dict[str, Life] = {}

    def turn(self) -> Seen:
        """Return what was found since the last turn."""
        before, self._seen = self._seen, Seen()
        return before

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Look for as long as the block lasts; what breaks the observer fails the block."""
        task = asyncio.create_task(self._look_always())
        try:
            yield
        finally:
            task.cancel()
            (ended,) = await asyncio.gather(task, return_exceptions=True)
            assert isinstance(ended, asyncio.CancelledError), ended

    async def _look_always(self) -> None:
        while True:
            await self._look()
            await asyncio.sleep(LOOK_S)

    async def _look(self) -> None:
        attempts = await asyncio.to_thread(attempts_of, self._mesh.edge_admin)
        try:
            traffic, listed = await self._mesh.now(), await self._mesh.listed()
        except VolaryError:
            return
        self._seen.looks += 1
        if not self._seen.generations or self._seen.generations[-1] != traffic.generation:
            self._seen.generations.append(traffic.generation)
        lives = {each.address: _life(each) for each in listed}
        self._ever_ready |= {(v, at) for at, life in lives.items() for v in life.ready}
        if attempts is not None:
            self._hold_against(attempts, lives)
        self._lives = lives
        ready = {version for life in lives.values() for version in life.ready}
        given = {each.version for each in traffic.weights if each.weight}
        given |= {traffic.shadow.version} if traffic.shadow.fraction else set()
        self._seen.bare += [
            f"version {v} has traffic and no replica at generation {traffic.generation}"
            for v in given - ready
        ]

    def _hold_against(self, attempts: dict[Place, int], lives: dict[str, Life]) -> None:
        """Judge each attempt since the last look.

        None goes to an address that never had the version ready. A life that both looks knew as
        one without it takes none either: only the moment of its first report is forgiven.
        """
        for (version, at), count in attempts.items():
            more = count - self._attempts.get((version, at), 0)
            more = count if more < 0 else more  # Envoy is another one by now
            if not more:
                continue
            self._seen.attempts += more
            before, now = self._lives.get(at), lives.get(at)
            is_known_bare = (
                before is not None
                and now is not None
                and before.incarnation == now.incarnation
                and version not in before.ready | now.ready
            )
            if (version, at) not in self._ever_ready or is_known_bare:
                self._seen.unready.append(f"{more} attempts at version {version} on {at}")
        self._attempts = attempts


def _life(replica: replica_pb2.Replica) -> Life:
    ready = replica_pb2.VERSION_STATE_READY
    held = frozenset(each.version for each in replica.versions if each.state == ready)
    return Life(replica.incarnation, held)


def attempts_of(admin: str) -> dict[Place, int] | None:
    """Return Envoy's attempts by version and host, None when it does not answer."""
    try:
        url = f"http://{admin}/clusters?format=json"
        with urllib.request.urlopen(url, timeout=FETCH_S) as reply:
            clusters = json.load(reply).get("cluster_statuses", [])
    except (OSError, ValueError):
        return None
    found: dict[Place, int] = {}
    for cluster in clusters:
        version = VersionName.of_cluster(cluster["name"])
        if version is None:
            continue
        for host in cluster.get("host_statuses", []):
            at = host["address"]["socket_address"]
            place = (version.version, f"{at['address']}:{at['port_value']}")
            found[place] = sum(
                int(row.get("value", 0)) for row in host["stats"] if row["name"] == "rq_total"
            )
    return found
