"""One Envoy's end of the aggregated delta stream, as a state machine without I/O.

What is pointed at is sent and acknowledged before what points to it, and the other way round
on removal, so that no call ever meets a route to a cluster that is not there.
"""

# pyright: reportAttributeAccessIssue=false, reportInvalidTypeForm=false
# (xds-protos ships no type stubs)

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from envoy.service.discovery.v3 import discovery_pb2

from volary_gateway.xds import snapshot as xds
from volary_gateway.xds.snapshot import ORDER, Resource, Snapshot, Table, TypeUrl

Request = discovery_pb2.DeltaDiscoveryRequest
Response = discovery_pb2.DeltaDiscoveryResponse
WILDCARD = "*"
TARGETS = (xds.CLUSTER, xds.ENDPOINTS)
POINTERS = (xds.LISTENER, xds.ROUTES, xds.SCOPE)


@dataclass(frozen=True, slots=True)
class Rejection:
    """A push that Envoy refused; it keeps the last good one."""

    kind: TypeUrl
    names: tuple[str, ...]
    text: str


@dataclass(slots=True)
class _InFlight:
    nonce: str
    upserts: dict[str, str]
    removals: tuple[str, ...]


@dataclass(slots=True)
class _Subscription:
    """What one Envoy wants of a type and what it has.

    Which names differ from what there is, is kept, not searched: an event weighs the names that
    it is about, a new table those that moved.
    """

    is_wildcard: bool = False
    names: set[str] = field(default_factory=set)
    held: dict[str, str] = field(default_factory=dict)  # acknowledged versions
    absent: set[str] = field(default_factory=set)  # told that there is none
    refused: dict[str, str] = field(default_factory=dict)  # versions not to send again
    in_flight: _InFlight | None = None
    there: Table = field(default_factory=Table)
    behind: set[str] = field(default_factory=set)  # to be sent, or told that they are gone
    lacking: set[str] = field(default_factory=set)  # there, and not held in any version

    def wants(self, name: str) -> bool:
        return self.is_wildcard or name in self.names

    def look(self, there: Table) -> None:
        """Hold what Envoy has against what there is now."""
        moved = there.since(self.there)
        self.there = there
        self.weigh(moved)

    def weigh(self, names: Iterable[str]) -> None:
        for name in names:
            item, held = self.there.get(name), self.held.get(name)
            if item is None:
                is_asked = name in self.names and name not in self.absent
                is_behind = held is not None or is_asked
            else:
                known = (held, self.refused.get(name))
                is_behind = self.wants(name) and item.version not in known
            (self.behind.add if is_behind else self.behind.discard)(name)
            is_lacking = item is not None and held is None
            (self.lacking.add if is_lacking else self.lacking.discard)(name)

    def weigh_all(self) -> None:
        self.weigh({*self.there, *self.held, *self.names, *self.behind, *self.lacking})

    @property
    def is_to_send(self) -> bool:
        return any(name in self.there for name in self.behind)

    def upserts(self) -> list[Resource]:
        """Return what Envoy wants and has not got."""
        return [self.there[name] for name in sorted(self.behind) if name in self.there]

    def removals(self) -> list[str]:
        """Return what Envoy has or asks for and there is not."""
        return sorted(name for name in self.behind if name not in self.there)

    def refuses(self) -> bool:
        """Say whether Envoy refused something that is still there."""
        return any(
            (item := self.there.get(name)) is not None and item.version == version
            for name, version in self.refused.items()
        )


class DeltaStream:
    """The subscriptions of one Envoy and what it acknowledged."""

    def __init__(self) -> None:
        self._subscriptions: dict[TypeUrl, _Subscription] = {}
        self._nonce = 0
        self.node = ""

    def receive(self, request: Request) -> Rejection | None:
        """Take a request: a subscription, an acknowledgement, or a refusal, which is returned."""
        self.node = self.node or request.node.id
        kind = TypeUrl(request.type_url)
        is_first = kind not in self._subscriptions
        subscription = self._subscriptions.setdefault(kind, _Subscription())
        _subscribe(subscription, request, is_first=is_first)
        if not request.response_nonce:
            return None
        return _settle(subscription, kind, request)

    def respond(self, snapshot: Snapshot) -> list[Response]:
        """Return what may be sent now; call again after each request and each new snapshot.

        At most one response of a type is in flight, so quick successive snapshots coalesce. A
        list, since what Envoy asks for while a response is on its way has not been looked at.
        """
        return list(self._responses(snapshot))

    def _responses(self, snapshot: Snapshot) -> Iterator[Response]:
        self._look(snapshot)
        for kind in ORDER:
            subscription = self._subscriptions.get(kind)
            if subscription is None or subscription.in_flight or not subscription.behind:
                continue
            upserts, removals = subscription.upserts(), subscription.removals()
            if kind in POINTERS and not self._targets_are_settled():
                upserts = []
            if kind in TARGETS and not self._pointers_are_settled():
                removals = [name for name in removals if name not in subscription.held]
            if upserts or removals:
                yield self._send(kind, subscription, upserts, removals, snapshot.version)

    def holds(self, snapshot: Snapshot) -> bool:
        """Return whether Envoy acknowledged all of a snapshot that it wants."""
        if not {xds.CLUSTER, xds.LISTENER, xds.ROUTES} <= self._subscriptions.keys():
            return False
        self._look(snapshot)
        return not self._subscriptions[xds.ROUTES].lacking and not any(
            subscription.in_flight or subscription.behind or subscription.refuses()
            for subscription in self._subscriptions.values()
        )

    def refuses(self, snapshot: Snapshot) -> bool:
        """Return whether Envoy refused something that a snapshot still has."""
        self._look(snapshot)
        return any(subscription.refuses() for subscription in self._subscriptions.values())

    def _look(self, snapshot: Snapshot) -> None:
        for kind, subscription in self._subscriptions.items():
            there = snapshot.resources.get(kind)  # a kind that nobody serves has nothing there
            if there is not None and there is not subscription.there:
                subscription.look(there)

    def _targets_are_settled(self) -> bool:
        """Say that every cluster is there and its endpoints have come at least once."""
        clusters = self._subscriptions.get(xds.CLUSTER)
        if (
            clusters is None
            or clusters.in_flight
            or any(n in clusters.there for n in clusters.behind)
        ):
            return False
        endpoints = self._subscriptions.get(xds.ENDPOINTS)
        if endpoints is None:
            return not clusters.there
        return endpoints.lacking <= endpoints.refused.keys()

    def _pointers_are_settled(self) -> bool:
        pointers = (self._subscriptions.get(kind) for kind in POINTERS)
        return not any(each and (each.in_flight or each.behind) for each in pointers)

    def _send(
        self,
        kind: TypeUrl,
        subscription: _Subscription,
        upserts: list[Resource],
        removals: list[str],
        version: str,
    ) -> Response:
        self._nonce += 1
        nonce = str(self._nonce)
        versions = {item.name: item.version for item in upserts}
        subscription.in_flight = _InFlight(nonce, versions, tuple(removals))
        return Response(
            system_version_info=version,
            type_url=kind,
            nonce=nonce,
            removed_resources=removals,
            resources=[
                discovery_pb2.Resource(name=item.name, version=item.version, resource=item.body)
                for item in upserts
            ],
        )


def _subscribe(subscription: _Subscription, request: Request, *, is_first: bool) -> None:
    asked = set(request.resource_names_subscribe)
    if WILDCARD in asked or (is_first and not asked):
        subscription.is_wildcard = True
    subscription.names |= asked - {WILDCARD}
    subscription.absent -= asked
    if is_first:
        subscription.held = dict(request.initial_resource_versions)
    else:
        # asking again for what was sent means that it was dropped: send it again
        for name in asked:
            subscription.held.pop(name, None)
    for name in request.resource_names_unsubscribe:
        if name == WILDCARD:
            subscription.is_wildcard = False
        subscription.names.discard(name)
        if not subscription.is_wildcard:
            subscription.held.pop(name, None)
    if is_first or WILDCARD in (*asked, *request.resource_names_unsubscribe):
        subscription.weigh_all()
    else:
        subscription.weigh((*asked, *request.resource_names_unsubscribe))


def _settle(subscription: _Subscription, kind: TypeUrl, request: Request) -> Rejection | None:
    sent = subscription.in_flight
    if sent is None or sent.nonce != request.response_nonce:
        return None  # an answer to a push of a stream before this one
    subscription.in_flight = None
    if request.HasField("error_detail"):
        subscription.refused |= sent.upserts
        subscription.weigh((*sent.upserts, *sent.removals))
        return Rejection(kind, tuple(sent.upserts), request.error_detail.message)
    for name, version in sent.upserts.items():
        if subscription.wants(name):
            subscription.held[name] = version
            subscription.refused.pop(name, None)
    for name in sent.removals:
        subscription.held.pop(name, None)
        subscription.absent.add(name)
    subscription.weigh((*sent.upserts, *sent.removals))
    return None
