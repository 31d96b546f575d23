"""An immutable, versioned set of resources that must be consistent before it is served."""

# pyright: reportAttributeAccessIssue=false, reportInvalidTypeForm=false
# (xds-protos ships no type stubs)

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NewType

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from volary_gateway.xds.packing import TYPE_PREFIX, pack

TypeUrl = NewType("TypeUrl", str)


def _type(name: str) -> TypeUrl:
    return TypeUrl(TYPE_PREFIX + name)


CLUSTER = _type("envoy.config.cluster.v3.Cluster")
ENDPOINTS = _type("envoy.config.endpoint.v3.ClusterLoadAssignment")
EXTENSION = _type("envoy.config.core.v3.TypedExtensionConfig")
LISTENER = _type("envoy.config.listener.v3.Listener")
SCOPE = _type("envoy.config.route.v3.ScopedRouteConfiguration")
ROUTES = _type("envoy.config.route.v3.RouteConfiguration")
RUNTIME = _type("envoy.service.runtime.v3.Runtime")

# make before break: what is pointed at comes before what points
ORDER = (CLUSTER, ENDPOINTS, EXTENSION, LISTENER, ROUTES, SCOPE, RUNTIME)
VERSION_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource; its version is the hash of its bytes, so equal states are equal versions."""

    name: str
    version: str
    body: AnyMessage


def resource(name: str, message: Message, salt: str = "") -> Resource:
    """Wrap a message under its name; `salt` makes it change together with another one."""
    body = pack(message)
    return Resource(name, version_of(body, salt), body)


def version_of(body: AnyMessage, salt: str = "") -> str:
    """Return the version of a resource's bytes."""
    return digest(body.value, salt.encode())


class Table(Mapping[str, Resource]):
    """The resources of one kind at one moment, and which of them are other than just before."""

    __slots__ = ("__weakref__", "_before", "_items", "_moved")

    def __init__(self, items: Iterable[Resource] = ()) -> None:
        self._items = {item.name: item for item in items}
        self._before: Callable[[], Table | None] = lambda: None
        self._moved: frozenset[str] = frozenset()

    def __getitem__(self, name: str) -> Resource:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def replaced(self, old: Iterable[str], new: Iterable[Resource]) -> Table:
        """Return the table without some names and with some resources; itself if none differs."""
        fresh = {item.name: item for item in new}
        gone = {name for name in old if name not in fresh}
        fresh = {
            name: item
            for name, item in fresh.items()
            if (known := self._items.get(name)) is None or known.version != item.version
        }
        if not gone and not fresh:
            return self
        after = Table()
        after._items = self._items | fresh
        for name in gone:
            del after._items[name]
        after._before = weakref.ref(self)
        after._moved = frozenset(gone | fresh.keys())
        return after

    def since(self, before: Mapping[str, Resource]) -> frozenset[str]:
        """Return the names whose resource is another one than before, or gone.

        Of the table that came just before it is known; of any other everything is compared.
        """
        if before is self:
            return frozenset()
        if self._before() is before:
            return self._moved
        names = self._items.keys() | before.keys()
        return frozenset(name for name in names if self._items.get(name) is not before.get(name))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Every resource by type and name, under one version."""

    version: str
    resources: Mapping[TypeUrl, Table]

    @classmethod
    def of(cls, resources: Mapping[TypeUrl, Iterable[Resource]]) -> Snapshot:
        """Freeze resources; the same ones give the same version in any process."""
        tables = {kind: Table(resources.get(kind, ())) for kind in ORDER}
        lines = [
            f"{kind} {item.name} {item.version}"
            for kind, items in tables.items()
            for item in sorted(items.values(), key=lambda item: item.name)
        ]
        return cls(digest("\n".join(lines).encode()), MappingProxyType(tables))

    def names(self, kind: TypeUrl) -> frozenset[str]:
        """Return the names of all resources of a type."""
        return frozenset(self.resources[kind])


def digest(*parts: bytes) -> str:
    """Return the version of some bytes."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(len(part).to_bytes(8, "big") + part)
    return hashed.hexdigest()[:VERSION_DIGITS]


EMPTY = Snapshot.of({})
