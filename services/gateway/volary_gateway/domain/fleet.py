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
        return not was_attached or before is None or before.essence != replica.essence

    def expire(self, now_us: int) -> tuple[str, ...]:
        """Forget the replicas whose lease is over; return their ids."""
        gone = [r.id for r in self._replicas.values() if not r.is_attached(now_us)]
        for replica_id in gone:
            del self._replicas[replica_id]
        return tuple(sorted(gone))

    def addresses(self) -> tuple[str, ...]:
        """Return where any call can go: every replica that takes calls."""
        return tuple(sorted({r.address for r in self._replicas.values() if not r.is_draining}))

    def endpoints(self, desired: Desired) -> dict[VersionName, tuple[str, ...]]:
        """Return the addresses that have a version ready, with the digest that is wanted."""
        found: dict[VersionName, set[str]] = {}
        for replica in self._replicas.values():
            for version, held in replica.versions.items():
                if not replica.is_draining and _serves(held, desired.digest(version)):
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
