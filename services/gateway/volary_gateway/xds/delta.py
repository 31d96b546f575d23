"""One Envoy's end of the aggregated delta stream, as a state machine without I/O.

What is pointed at is sent and acknowledged before what points to it, and the other way round
on removal, so that no call ever meets a route to a cluster that is not there.
"""

# pyright: reportAttributeAccessIssue=false, reportInvalidTypeForm=false
# (xds-protos ships no type stubs)

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from envoy.service.discovery.v3 import discovery_pb2

from volary_gateway.xds import snapshot as xds
from volary_gateway.xds.snapshot import ORDER, Resource, Snapshot, TypeUrl

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
    """What one Envoy wants of a type and what it has."""

    is_wildcard: bool = False
    names: set[str] = field(default_factory=set)
    held: dict[str, str] = field(default_factory=dict)  # acknowledged versions
    absent: set[str] = field(default_factory=set)  # told that there is none
    refused: dict[str, str] = field(default_factory=dict)  # versions not to send again
    in_flight: _InFlight | None = None
    settled: Mapping[str, Resource] | None = None  # there was nothing to send of exactly these

    def wants(self, name: str) -> bool:
        return self.is_wildcard or name in self.names

    def upserts(self, there: Mapping[str, Resource]) -> list[Resource]:
        """Return what Envoy wants and has not got."""
        if there is self.settled:
            return []
        return [
            item
            for name, item in there.items()
            if self.wants(name)
            and item.version not in (self.held.get(name), self.refused.get(name))
        ]

    def removals(self, there: Mapping[str, Resource]) -> list[str]:
        """Return what Envoy has or asks for and there is not."""
        if there is self.settled:
            return []
        asked = {name for name in self.names if name not in self.absent}
        return sorted(name for name in self.held.keys() | asked if name not in there)

    def refuses(self, there: Mapping[str, Resource]) -> bool:
        """Say whether Envoy refused something that is still there."""
        return any(
            (item := there.get(name)) is not None and item.version == version
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
        subscription.settled = None
        _subscribe(subscription, request, is_first=is_first)
        if not request.response_nonce:
            return None
        return _settle(subscription, kind, request)

    def respond(self, snapshot: Snapshot) -> Iterator[Response]:
        """Yield what may be sent now; call again after each request and each new snapshot.

        At most one response of a type is in flight, so quick successive snapshots coalesce.
        """
        for kind in ORDER:
            subscription = self._subscriptions.get(kind)
            if subscription is None or subscription.in_flight is not None:
                continue
            there = snapshot.resources[kind]
            upserts = subscription.upserts(there)
            removals = subscription.removals(there)
            if not upserts and not removals:
                subscription.settled = there
            if kind in POINTERS and not self._targets_are_settled(snapshot):
                upserts = []
            if kind in TARGETS and not self._pointers_are_settled(snapshot):
                removals = [name for name in removals if name not in subscription.held]
            if upserts or removals:
                yield self._send(kind, subscription, upserts, removals, snapshot.version)

    def holds(self, snapshot: Snapshot) -> bool:
        """Return whether Envoy acknowledged all of a snapshot that it wants."""
        if not {xds.CLUSTER, xds.LISTENER} <= self._subscriptions.keys():
            return False
        return all(
            subscription.in_flight is None
            and not subscription.upserts(snapshot.resources[kind])
            and not subscription.removals(snapshot.resources[kind])
            and not subscription.refuses(snapshot.resources[kind])
            for kind, subscription in self._subscriptions.items()
            if kind in ORDER
        ) and self._routes_are_asked_for(snapshot)

    def refuses(self, snapshot: Snapshot) -> bool:
        """Return whether Envoy refused something that a snapshot still has."""
        return any(
            subscription.refuses(snapshot.resources[kind])
            for kind, subscription in self._subscriptions.items()
            if kind in ORDER
        )

    def _routes_are_asked_for(self, snapshot: Snapshot) -> bool:
        routes = self._subscriptions.get(xds.ROUTES)
        return routes is not None and snapshot.names(xds.ROUTES) <= routes.held.keys()

    def _targets_are_settled(self, snapshot: Snapshot) -> bool:
        """Say that every cluster is there and its endpoints have come at least once."""
        clusters = self._subscriptions.get(xds.CLUSTER)
        if (
            clusters is None
            or clusters.in_flight
            or clusters.upserts(snapshot.resources[xds.CLUSTER])
        ):
            return False
        endpoints = self._subscriptions.get(xds.ENDPOINTS)
        held = endpoints.held.keys() | endpoints.refused.keys() if endpoints else frozenset()
        return snapshot.names(xds.ENDPOINTS) <= held

    def _pointers_are_settled(self, snapshot: Snapshot) -> bool:
        for kind in POINTERS:
            subscription = self._subscriptions.get(kind)
            if subscription is None:
                continue
            there = snapshot.resources[kind]
            if (
                subscription.in_flight
                or subscription.upserts(there)
                or subscription.removals(there)
            ):
                return False
        return True

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


def _settle(subscription: _Subscription, kind: TypeUrl, request: Request) -> Rejection | None:
    sent = subscription.in_flight
    if sent is None or sent.nonce != request.response_nonce:
        return None  # an answer to a push of a stream before this one
    subscription.in_flight = None
    if request.HasField("error_detail"):
        subscription.refused |= sent.upserts
        return Rejection(kind, tuple(sent.upserts), request.error_detail.message)
    for name, version in sent.upserts.items():
        if subscription.wants(name):
            subscription.held[name] = version
            subscription.refused.pop(name, None)
    for name in sent.removals:
        subscription.held.pop(name, None)
        subscription.absent.add(name)
    return None
