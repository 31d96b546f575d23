"""Inference replicas, what each holds, and for how long it is believed.

A replica is believed for the length of its lease after its last report. When its stream breaks,
its endpoints stay until then: Envoy's own checks are faster, and a restart of gateway must not
take anybody out of service.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from volary_kit.errors import Aborted, FailedPrecondition

from volary_gateway.domain.names import ModelName, VersionName

# Envoy's health checks take a frozen replica out within 3 s; the lease outlasts a machine that is
# too busy to report, since a lease that ends by mistake takes a good replica away
LEASE_US = 10_000_000
MAX_SUPERSEDED = 256
# after another one is ready Envoy has to find it healthy: it looks twice a second, for a second
HANDOVER_US = 3_000_000
# before a replica that drains is let go: its peer may have died a moment ago, unnoticed yet
CERTAIN_US = 500_000
GONE = 0


class Farewell(StrEnum):
    """Whether a replica that drains may go: STAY while calls go on coming to it."""

    NONE = "UNSPECIFIED"
    GO = "GO"
    STAY = "STAY"


class VersionState(StrEnum):
    """Where a version is on its way into service."""

    LOADING = "LOADING"
    WARMING = "WARMING"
    READY = "READY"
    DRAINING = "DRAINING"
    FAILED = "FAILED"
    QUARANTINED = "QUARANTINED"


REFUSED = frozenset({VersionState.FAILED, VersionState.QUARANTINED})


@dataclass(frozen=True, slots=True)
class Held:
    """One version as one replica has it."""

    digest: str
    state: VersionState
    error_reason: str = ""
    error: str = ""
    backend: str = ""
    ready_us: int = 0


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica as of its last report."""

    id: str
    address: str
    incarnation: str
    versions: Mapping[VersionName, Held] = field(default_factory=dict)
    revision: int = 0
    is_draining: bool = False
    engine: str = ""
    queue_us: int = 0
    lease_until_us: int = 0

    def is_attached(self, now_us: int) -> bool:
        """Say whether its lease holds."""
        return now_us < self.lease_until_us

    def has(self, version: VersionName, desired: Desired) -> bool:
        """Say whether it has a version ready, with the digest that is wanted."""
        held = self.versions.get(version)
        return held is not None and _serves(held, desired.digest(version))

    @property
    def essence(self) -> tuple[object, ...]:
        """What of it decides about endpoints, and is kept over a restart of gateway.

        Holding the mapping itself: a report that repeats the last one costs no comparison.
        """
        return (
            self.address,
            self.incarnation,
            self.is_draining,
            self.engine,
            self.versions,
        )


@dataclass(frozen=True, slots=True)
class Readiness:
    """On how many replicas a version is ready."""

    version: VersionName
    views: tuple[tuple[str, Held], ...]
    ready: int
    attached: int
    failed: int

    @property
    def is_decided(self) -> bool:
        """True when every attached replica has it ready, or one has refused it."""
        return bool(self.failed) or (self.attached > 0 and self.ready >= self.attached)


class Desired:
    """The versions that replicas shall hold, by digest; grows a revision with every change."""

    def __init__(self, revision: int = 0, digests: Mapping[VersionName, str] | None = None) -> None:
        self.revision = revision
        self._digests = dict(digests or {})

    def digest(self, version: VersionName) -> str | None:
        """Return the digest of a version, None when it is not wanted."""
        return self._digests.get(version)

    def __iter__(self) -> Iterator[tuple[VersionName, str]]:
        return iter(sorted(self._digests.items()))

    def check(self, version: VersionName, digest: str) -> bool:
        """Say whether wanting a version is new; raise when it is wanted with another digest."""
        present = self._digests.get(version)
        if present not in (None, digest):
            raise FailedPrecondition(
                "DIGEST_CHANGED",
                f"{version} is {present}; a version never changes its artifact",
                metadata={"version": str(version), "digest": present or ""},
            )
        return present is None

    def add(self, version: VersionName, digest: str, revision: int) -> None:
        """Want a version from a revision on."""
        self._digests[version] = digest
        self.revision = revision

    def remove(self, version: VersionName, revision: int) -> None:
        """Let a version go."""
        self._digests.pop(version, None)
        self.revision = revision


class Fleet:
    """Every replica that has ever reported and was not forgotten."""

    def __init__(self, replicas: Iterable[Replica] = ()) -> None:
        self._replicas = {replica.id: replica for replica in replicas}
        self._superseded: dict[tuple[str, str], None] = {}
        self._streams: dict[str, str] = {}  # incarnation by id of who reports right now
        self._parting: dict[str, int] = {}  # until when those that drain go on, by id

    def __iter__(self) -> Iterator[Replica]:
        return iter(sorted(self._replicas.values(), key=lambda replica: replica.id))

    def get(self, replica_id: str) -> Replica | None:
        """Return a replica, None when it never reported."""
        return self._replicas.get(replica_id)

    def renew(self, now_us: int) -> None:
        """Begin every lease anew: while nobody listened nobody could report."""
        self._replicas = {
            key: replace(replica, lease_until_us=now_us + LEASE_US)
            for key, replica in self._replicas.items()
        }

    def report(self, replica: Replica, now_us: int) -> bool:
        """Take a report and renew the lease; return whether anything but the lease changed.

        Raises Aborted `REPLICA_REPLACED` for an older life of the same id: a process that was
        frozen while its successor took over.
        """
        if (replica.id, replica.incarnation) in self._superseded:
            raise Aborted(
                "REPLICA_REPLACED",
                f"replica {replica.id} has been replaced by a newer process",
                metadata={"replica": replica.id},
            )
        before = self._replicas.get(replica.id)
        if before and before.incarnation != replica.incarnation:
            self._supersede(before)
        was_attached = before is not None and before.is_attached(now_us)
        self._replicas[replica.id] = replace(replica, lease_until_us=now_us + LEASE_US)
        self._streams[replica.id] = replica.incarnation
        return not was_attached or before is None or before.essence != replica.essence

    def silent(self, replica_id: str, incarnation: str) -> None:
        """Note that a replica's stream broke: its endpoints stay, but nobody leaves it alone."""
        if self._streams.get(replica_id) == incarnation:
            del self._streams[replica_id]

    def part(self, desired: Desired, carrying: Iterable[VersionName], now_us: int) -> bool:
        """Let go who drains and is not needed; return whether that changed anything.

        Of those that have a version of `carrying` one has to stay while nobody else answers for it,
        and until Envoy has found who does. Who was let go is not asked back.
        """
        before, self._parting = self._parting, {}
        draining = [replica for replica in self if replica.is_draining]
        carrying = tuple(carrying) if draining else ()
        for replica in draining:
            ready = [v for v in carrying if replica.has(v, desired)]
            until_us = before.get(replica.id, now_us + CERTAIN_US if ready else GONE)
            if until_us != GONE and not all(self._has_other(replica, v, desired) for v in ready):
                until_us = now_us + HANDOVER_US
            self._parting[replica.id] = until_us if until_us > now_us else GONE
        return self._farewells(before) != self._farewells(self._parting)

    def farewell(self, replica_id: str) -> Farewell:
        """Return what a replica is told that drains."""
        until_us = self._parting.get(replica_id)
        if until_us is None:
            return Farewell.NONE
        return Farewell.GO if until_us == GONE else Farewell.STAY

    def _has_other(self, replica: Replica, version: VersionName, desired: Desired) -> bool:
        """Say whether somebody else answers for a version and goes on doing so.

        Of those that drain, the first by id stays; who does not report may be dead.
        """
        return any(
            other.has(version, desired)
            and self._streams.get(other.id) == other.incarnation
            and (not other.is_draining or self._parting.get(other.id, GONE) != GONE)
            for other in self._replicas.values()
            if other.id != replica.id
        )

    def _takes_calls(self, replica: Replica) -> bool:
        return not replica.is_draining or self._parting.get(replica.id, GONE) != GONE

    @staticmethod
    def _farewells(parting: Mapping[str, int]) -> dict[str, bool]:
        return {key: until_us == GONE for key, until_us in parting.items()}

    def expire(self, now_us: int) -> tuple[str, ...]:
        """Forget the replicas whose lease is over; return their ids."""
        gone = [r.id for r in self._replicas.values() if not r.is_attached(now_us)]
        for replica_id in gone:
            del self._replicas[replica_id]
        return tuple(sorted(gone))

    def addresses(self) -> tuple[str, ...]:
        """Return where any call can go: every replica that takes calls."""
        return tuple(sorted({r.address for r in self._replicas.values() if self._takes_calls(r)}))

    def endpoints(self, desired: Desired) -> dict[VersionName, tuple[str, ...]]:
        """Return the addresses that have a version ready, with the digest that is wanted."""
        found: dict[VersionName, set[str]] = {}
        for replica in self._replicas.values():
            for version, held in replica.versions.items():
                if self._takes_calls(replica) and _serves(held, desired.digest(version)):
                    found.setdefault(version, set()).add(replica.address)
        return {version: tuple(sorted(at)) for version, at in sorted(found.items())}

    def readiness(self, version: VersionName, desired: Desired) -> Readiness:
        """Return what each replica says of a version."""
        wanted = desired.digest(version)
        takers = [replica for replica in self if not replica.is_draining]
        views = [(r.id, held) for r in takers if (held := r.versions.get(version))]
        return Readiness(
            version=version,
            views=tuple(views),
            ready=sum(_serves(held, wanted) for _, held in views),
            attached=len(takers),
            failed=sum(held.state in REFUSED for _, held in views),
        )

    def _supersede(self, replica: Replica) -> None:
        self._superseded[replica.id, replica.incarnation] = None
        while len(self._superseded) > MAX_SUPERSEDED:
            del self._superseded[next(iter(self._superseded))]


def require_latest(model: ModelName, generation: int, latest: int) -> None:
    """Raise Aborted `STALE_GENERATION` when a later rollout has loaded versions of the model."""
    if generation < latest:
        raise Aborted(
            "STALE_GENERATION",
            f"a later rollout of {model} has taken over what is loaded",
            metadata={
                "model": str(model),
                "rollout_generation": str(generation),
                "latest_rollout_generation": str(latest),
            },
        )


def _serves(held: Held, wanted: str | None) -> bool:
    return held.state is VersionState.READY and wanted is not None and held.digest == wanted
