"""The state of the mesh in this process, and how it changes.

Postgres holds the truth of traffic and of the desired set; replicas tell the rest. Every change
builds a new snapshot from the whole state and hands it to the plane.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from volary_kit import outbox
from volary_kit.clock import Clock
from volary_kit.database import Database, Transaction
from volary_kit.errors import FailedPrecondition, NotFound, VolaryError
from volary_kit.streams import TRAFFIC_EVENTS

from volary_gateway.admin import EnvoyAdmin
from volary_gateway.domain.fallbacks import Fallback
from volary_gateway.domain.fleet import LEASE_US, Desired, Fleet, Readiness, Replica, require_latest
from volary_gateway.domain.limits import Limit, LimitName
from volary_gateway.domain.names import ModelName, VersionName
from volary_gateway.domain.traffic import IsReady, Traffic
from volary_gateway.events import traffic_event
from volary_gateway.plane import Plane
from volary_gateway.store import edge as edge_rows
from volary_gateway.store import fleet as fleet_rows
from volary_gateway.store import identity as identity_rows
from volary_gateway.store import traffic as traffic_rows
from volary_gateway.xds.edge import Edge
from volary_gateway.xds.mesh import Built, Mesh
from volary_gateway.xds.snapshot import Snapshot

log = logging.getLogger(__name__)
LEASE_LOOK_S = 0.5
SAVE_AGAIN_S = 0.5
Decide = Callable[[Traffic, IsReady, int], Traffic]
ListRevoked = Callable[[Iterable[str]], None]


def list_nowhere(_key_ids: Iterable[str]) -> None:
    """Tell nobody which keys are revoked: only the edge refuses them."""


class Changes:
    """Wake everybody who waits for the next change."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def announce(self) -> None:
        """Wake who took `next` before now."""
        now, self._next = self._next, asyncio.Event()
        now.set()

    def next(self) -> asyncio.Event:
        """Return what is set at the next change; take it before looking at the state."""
        return self._next


class Stages:
    """Where the time of a write goes, by the name of each stage, in seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began_s = clock.monotonic_s()
        self.taken_s: dict[str, float] = {}

    def end(self, stage: str) -> None:
        """Give the time since the last stage to this one."""
        now_s = self._clock.monotonic_s()
        self.taken_s[stage] = self.taken_s.get(stage, 0.0) + now_s - self._began_s
        self._began_s = now_s


@dataclass(frozen=True, slots=True)
class Served:
    """A model's traffic and the snapshot that carries it; of a write, where its time went."""

    traffic: Traffic
    snapshot: Snapshot
    in_effect: bool
    taken_s: Mapping[str, float] = field(default_factory=dict)


class Controller:
    """Own the state of the mesh; one at a time per database."""

    def __init__(
        self,
        database: Database,
        plane: Plane,
        edge: Edge,
        admin: EnvoyAdmin,
        clock: Clock,
        list_revoked: ListRevoked = list_nowhere,
    ) -> None:
        self._database = database
        self._plane = plane
        self._edge = edge
        self._admin = admin
        self._clock = clock
        self._traffic: dict[ModelName, Traffic] = {}
        self._written_by: dict[ModelName, str] = {}  # the request behind each model's traffic
        self._unsaved: set[str] = set()
        self._writing = asyncio.Lock()
        self._saving = asyncio.Lock()
        self._in_hand = 0
        self._rests = asyncio.Event()
        self._rests.set()
        self._revoked: tuple[str, ...] = ()
        self._list_revoked = list_revoked
        self._built = Built()
        self._ahead: tuple[Built, Traffic, Built] | None = None
        self._endpoints: dict[VersionName, tuple[str, ...]] | None = None
        self._listed: tuple[str, ...] | None = None
        self._let_go: Callable[[VersionName], None] = lambda _version: None
        self.limits: dict[LimitName, Limit] = {}
        self.fallbacks: dict[ModelName, Fallback] = {}
        self.fleet = Fleet()
        self.desired = Desired()
        self.changes = Changes()

    def on_unload(self, let_go: Callable[[VersionName], None]) -> None:
        """Call `let_go` with each version that leaves the desired set, and Envoy with it."""
        self._let_go = let_go

    async def load(self) -> None:
        """Read the state back and serve it: the same state gives the same snapshot."""
        lease_until_us = self._clock.now_us() + LEASE_US
        async with self._database.read() as transaction:
            stored = await traffic_rows.every(transaction)
            self._traffic = {traffic.model: traffic for traffic, _ in stored}
            self._written_by = {traffic.model: request_id for traffic, request_id in stored}
            self._revoked = await identity_rows.revoked(transaction, self._clock.now_us())
            self.limits = await edge_rows.every_limit(transaction)
            self.fallbacks.update(await edge_rows.every_fallback(transaction))
            self.desired = await fleet_rows.desired(transaction)
            self.fleet = Fleet(await fleet_rows.known_replicas(transaction, lease_until_us))
        self._part()
        self._fleet_changed()
        self._list()

    @property
    def traffic(self) -> tuple[Traffic, ...]:
        """The traffic of every model."""
        return tuple(sorted(self._traffic.values(), key=lambda t: t.model))

    @property
    def live(self) -> Collection[Traffic]:
        """The traffic of every model, in no order."""
        return self._traffic.values()

    def serving(self, model: ModelName) -> tuple[int, ...]:
        """Return the versions of a model that have traffic."""
        traffic = self._traffic.get(model)
        return () if traffic is None else traffic.serving

    def served(self, model: ModelName) -> Served:
        """Return a model's traffic as it stands; raise NotFound `TRAFFIC_NOT_FOUND`."""
        traffic = self._traffic.get(model)
        if traffic is None:
            raise NotFound(
                "TRAFFIC_NOT_FOUND", f"{model} has no traffic", metadata={"model": str(model)}
            )
        snapshot = self._plane.snapshot
        return Served(traffic, snapshot, self._plane.is_held(snapshot))

    async def write(
        self, model: ModelName, request_id: str, decide: Decide, timeout_s: float
    ) -> Served:
        """Change a model's traffic and wait until every connected Envoy carries it.

        The change commits in a transaction of its own: what Envoy is told must be true
        whatever becomes of the call. A repeated request finds its own write and changes nothing.
        """
        self._in_hand += 1
        self._rests.clear()
        try:
            return await self._pushed(model, request_id, decide, timeout_s)
        finally:
            self._in_hand -= 1
            if not self._in_hand:
                self._rests.set()

    async def rest(self, timeout_s: float) -> None:
        """Wait until no write is in hand, but no longer than that."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._rests.wait()

    async def _pushed(
        self, model: ModelName, request_id: str, decide: Decide, timeout_s: float
    ) -> Served:
        deadline_s = self._clock.monotonic_s() + timeout_s
        stages = Stages(self._clock)
        await self._seen_at_the_edge(model, decide, timeout_s / 2)
        stages.end("hosts")
        # a task of its own: the write outlives a caller who goes away, and does not join the
        # transaction in which the reply is remembered
        writing = asyncio.create_task(self._write(model, request_id, decide, stages))
        traffic, snapshot = await asyncio.shield(writing)
        left_s = max(0.0, deadline_s - self._clock.monotonic_s())
        in_effect = await self._plane.converge(snapshot, left_s)
        stages.end("push")
        return Served(traffic, snapshot, in_effect, stages.taken_s)

    async def _write(
        self, model: ModelName, request_id: str, decide: Decide, stages: Stages
    ) -> tuple[Traffic, Snapshot]:
        async with self._writing:
            # what the write relies on must outlive this process as the write does
            await self._save_replicas()
            stages.end("wait")
            after = await self._written_at_once(model, request_id, decide, stages)
            if after is None:
                after, request_id = await self._written_under_lock(model, request_id, decide)
            stages.end("commit")
            # also when an earlier attempt wrote it and never knew
            self._traffic[model], self._written_by[model] = after, request_id
            self._serve(self._with(after))
            return after, self._plane.snapshot

    async def _written_at_once(
        self, model: ModelName, request_id: str, decide: Decide, stages: Stages
    ) -> Traffic | None:
        """Write what follows from the state in memory, unless the rows say otherwise.

        None when that is for the database to say: a refusal, another production version.
        """
        before = self._traffic.get(model, Traffic(model))
        if request_id and self._written_by.get(model) == request_id:
            return before
        try:
            after = decide(before, self._is_ready(model), self._clock.now_us())
        except VolaryError:
            return None
        if after.production != before.production:
            return None
        self._plane.check(self._with(after).snapshot)
        stages.end("build")
        event = traffic_event(after)
        is_written = await traffic_rows.write(self._database, before, after, request_id, event)
        return after if is_written else None

    async def _written_under_lock(
        self, model: ModelName, request_id: str, decide: Decide
    ) -> tuple[Traffic, str]:
        async with self._database.transaction() as transaction:
            before, written_by = await traffic_rows.lock(transaction, model)
            if request_id and written_by == request_id:
                return before, written_by
            after = decide(before, self._is_ready(model), self._clock.now_us())
            self._plane.check(self._with(after).snapshot)
            await self._save(transaction, before, after, request_id)
            return after, request_id

    async def _save(
        self, transaction: Transaction, before: Traffic, after: Traffic, request_id: str
    ) -> None:
        await traffic_rows.save(transaction, after, request_id)
        if after.production != before.production:
            self.desired.revision = await fleet_rows.raise_revision(transaction)
        await outbox.add(transaction, TRAFFIC_EVENTS, traffic_event(after))

    async def _seen_at_the_edge(self, model: ModelName, decide: Decide, timeout_s: float) -> None:
        """Wait until Envoy finds a healthy host in each cluster that gets its first traffic.

        Before the write and outside of its lock: nobody who rolls back waits for it, and the way
        back to production is not asked for at all. A write that will be refused is left to the
        write itself.
        """
        before = self._traffic.get(model, Traffic(model))
        try:
            after = decide(before, self._is_ready(model), self._clock.now_us())
        except VolaryError:
            return
        fresh = sorted(after.receiving - before.receiving - {before.production})
        clusters = [VersionName.of(model, version).cluster for version in fresh]
        # the host of a fallback is always healthy and is no replica
        spare = int(bool(self._edge.fallback) and model in self.fallbacks)
        unseen = (
            await self._admin.without_hosts(clusters, timeout_s, spare)
            if self._plane.connected
            else ()
        )
        if unseen:
            raise FailedPrecondition(
                "VERSION_NOT_READY",
                f"Envoy finds no healthy replica for {', '.join(unseen)}",
                metadata={"model": str(model), "clusters": ",".join(unseen)},
            )

    def hostless(self, model: ModelName, generation: int) -> int:
        """Return the version that Envoy found no host for, 0 when that is not certain."""
        traffic = self._traffic.get(model)
        if traffic is None or traffic.generation != generation:
            return 0
        ready = self._ready()
        bare = tuple(v for v in traffic.serving if VersionName.of(model, v) not in ready)
        found = traffic.serving if len(traffic.serving) == 1 else bare
        return found[0] if len(found) == 1 else 0

    async def set_limit(self, limit: Limit) -> None:
        """Limit calls at the edge from the next push on."""
        async with self._writing:
            async with self._database.transaction() as transaction:
                await edge_rows.save_limit(transaction, limit)
            self.limits[limit.name] = limit
            self._publish()

    async def remove_limit(self, name: LimitName) -> None:
        """Limit calls no longer; raise NotFound `LIMIT_NOT_FOUND`."""
        async with self._writing:
            async with self._database.transaction() as transaction:
                await edge_rows.remove_limit(transaction, name)
            self.limits.pop(name, None)
            self._publish()

    async def set_fallback(self, fallback: Fallback) -> None:
        """Answer for a model by its fallback whenever none of its replicas can."""
        async with self._writing:
            async with self._database.transaction() as transaction:
                await edge_rows.save_fallback(transaction, fallback)
            self.fallbacks[fallback.model] = fallback
            self._publish()

    async def remove_fallback(self, model: ModelName) -> None:
        """Answer for a model by its replicas alone."""
        async with self._writing:
            async with self._database.transaction() as transaction:
                await edge_rows.remove_fallback(transaction, model)
            self.fallbacks.pop(model, None)
            self._publish()

    async def refresh_revoked(self) -> None:
        """Refuse the keys that are revoked by now, at the edge and behind it."""
        async with self._database.read() as transaction:
            self._revoked = await identity_rows.revoked(transaction, self._clock.now_us())
        self._publish()
        self._list()

    def _list(self) -> None:
        """Tell the services which keys are revoked; what cannot be written is tried again."""
        if self._listed == self._revoked:
            return
        try:
            self._list_revoked(self._revoked)
        except OSError as error:
            log.error("the list of revoked keys is not written: %s", error.strerror)  # noqa: TRY400
            return
        self._listed = self._revoked

    def _ready(self) -> dict[VersionName, tuple[str, ...]]:
        """Return the addresses by version; the same object until the fleet changes."""
        if self._endpoints is None:
            self._endpoints = self.fleet.endpoints(self.desired)
        return self._endpoints

    def _is_ready(self, model: ModelName) -> IsReady:
        ready = self._ready()
        return lambda version: VersionName.of(model, version) in ready

    async def report(self, replica: Replica) -> None:
        """Take a replica's report."""
        if self.fleet.report(replica, self._clock.now_us()):
            self._unsaved.add(replica.id)
            self._part()
            self._fleet_changed()

    def silent(self, replica: Replica) -> None:
        """Note that the stream of a replica broke: nobody who drains may count on it."""
        self.fleet.silent(replica.id, replica.incarnation)
        if self._part():
            self._fleet_changed()

    def _part(self) -> bool:
        """Let go who drains and is not needed; return whether that changed anything."""
        carrying = (VersionName.of(t.model, v) for t in self.live for v in t.versions)
        return self.fleet.part(self.desired, carrying, self._clock.now_us())

    def readiness(self, version: VersionName) -> Readiness:
        """Return on how many replicas a version is ready."""
        return self.fleet.readiness(version, self.desired)

    async def calls_in_flight(self, version: VersionName) -> int | None:
        """Return how many calls are on their way to a version, None while Envoy is away."""
        return await self._admin.in_flight(version.cluster)

    async def load_version(
        self, version: VersionName, digest: str, rollout_generation: int = 0
    ) -> None:
        """Put a version into the desired set; raise `STALE_GENERATION` for an old rollout."""
        async with self._writing:
            is_new = self.desired.check(version, digest)
            async with self._database.transaction() as transaction:
                await _fence(transaction, version.parent, rollout_generation)
                if not is_new:
                    return
                revision = await fleet_rows.want(transaction, version, digest)
            self.desired.add(version, digest, revision)
            self._fleet_changed()

    async def unload_version(self, version: VersionName, rollout_generation: int = 0) -> None:
        """Take a version out of the desired set.

        Raises `VERSION_IN_TRAFFIC` while it serves, `STALE_GENERATION` for an old rollout.
        """
        async with self._writing:
            traffic = self._traffic.get(version.parent)
            if traffic is not None and version.version in traffic.versions:
                raise FailedPrecondition(
                    "VERSION_IN_TRAFFIC",
                    f"{version} has traffic or is production",
                    metadata={"version": str(version)},
                )
            async with self._database.transaction() as transaction:
                await _fence(transaction, version.parent, rollout_generation)
                revision = await fleet_rows.let_go(transaction, version)
            self.desired.remove(version, revision)
            self._fleet_changed()
            self._let_go(version)

    async def watch_leases(self) -> None:
        """Withdraw the endpoints of replicas whose lease is over, and keep the rows in step."""
        self.fleet.renew(self._clock.now_us())
        while True:
            for replica_id in self.fleet.expire(self._clock.now_us()):
                log.warning("the lease of replica %s is over", replica_id)
                self._unsaved.add(replica_id)
                self._fleet_changed()
            if self._part():
                self._fleet_changed()
            try:
                await self._save_replicas()
            except VolaryError as error:
                log.warning("the replicas are not saved: %s", error.reason)
            self._list()
            await asyncio.sleep(LEASE_LOOK_S)

    async def _save_replicas(self) -> None:
        """Write what a restart of gateway must know to serve the same endpoints."""
        async with self._saving:
            pending = {key: self.fleet.get(key) for key in sorted(self._unsaved)}
            if not pending:
                return
            async with self._database.transaction() as transaction:
                for replica_id, replica in pending.items():
                    if replica is None:
                        await fleet_rows.forget_replica(transaction, replica_id)
                    else:
                        await fleet_rows.save_replica(transaction, replica)
            # one that has reported anew since stays unsaved
            self._unsaved -= {
                key for key, saved in pending.items() if _is_still(self.fleet, key, saved)
            }

    def _mesh(self) -> Mesh:
        return Mesh(
            edge=self._edge,
            traffic=tuple(self._traffic.values()),
            ready=self._ready(),
            replicas=self.fleet.addresses(),
            revoked=self._revoked,
            limits=tuple(self.limits.values()),
            fallbacks=frozenset(self.fallbacks),
        )

    def _with(self, traffic: Traffic) -> Built:
        """Return what is served with one model's traffic: built once, to be checked and served."""
        ahead = self._ahead
        if ahead is None or ahead[0] is not self._built or ahead[1] is not traffic:
            ahead = self._ahead = self._built, traffic, self._built.with_traffic(traffic)
        return ahead[2]

    def _fleet_changed(self) -> None:
        """Serve from who is ready by now."""
        self._endpoints = None
        self._publish()

    def _publish(self) -> None:
        """Serve the whole state, whatever of it changed."""
        self._serve(self._built.of(self._mesh()))

    def _serve(self, built: Built) -> None:
        self._plane.publish(built.snapshot)
        self._built, self._ahead = built, None
        self.changes.announce()


async def _fence(transaction: Transaction, model: ModelName, rollout_generation: int) -> None:
    """Let a rollout through unless a later one of the model has been here; 0 is no rollout."""
    if rollout_generation:
        latest = await fleet_rows.claim(transaction, model, rollout_generation)
        require_latest(model, rollout_generation, latest)


def _is_still(fleet: Fleet, replica_id: str, saved: Replica | None) -> bool:
    """Say whether a replica is still as it was saved; a renewed lease makes no difference."""
    now = fleet.get(replica_id)
    if now is None or saved is None:
        return now is saved
    return now.essence == saved.essence
