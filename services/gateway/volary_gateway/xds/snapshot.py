"""An immutable, versioned set of resources that must be consistent before it is served."""

# pyright: reportAttributeAccessIssue=false, reportInvalidTypeForm=false
# (xds-protos ships no type stubs)

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
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


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Every resource by type and name, under one version."""

    version: str
    resources: Mapping[TypeUrl, Mapping[str, Resource]]

    @classmethod
    def of(cls, resources: Mapping[TypeUrl, Iterable[Resource]]) -> Snapshot:
        """Freeze resources; the same ones give the same version in any process."""
        frozen = {
            kind: MappingProxyType({item.name: item for item in resources.get(kind, ())})
            for kind in ORDER
        }
        lines = [
            f"{kind} {item.name} {item.version}"
            for kind, items in frozen.items()
            for item in sorted(items.values(), key=lambda item: item.name)
        ]
        return cls(digest("\n".join(lines).encode()), MappingProxyType(frozen))

    def names(self, kind: TypeUrl) -> frozenset[str]:
        """Return the names of all resources of a type."""
        return frozenset(self.resources[kind])


def digest(*parts: bytes) -> str:
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(len(part).to_bytes(8, "big") + part)
    return hashed.hexdigest()[:VERSION_DIGITS]


EMPTY = Snapshot.of({})
