"""Revoked keys at the edge: a filter that comes apart from the listener, so it may change."""

# pyright: reportAttributeAccessIssue=false, reportInvalidTypeForm=false
# (xds-protos ships no type stubs)

from __future__ import annotations

from collections.abc import Iterable

from envoy.config.core.v3 import config_source_pb2, extension_pb2
from envoy.config.rbac.v3 import rbac_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as filter_pb2
from envoy.type.matcher.v3 import metadata_pb2

from volary_gateway.xds.packing import TYPE_PREFIX, ads, pack

NAME = "volary.revocations"
JWT_FILTER = "envoy.filters.http.jwt_authn"
JWT_CLAIMS = "claims"
KEY_ID = "jti"


def revocations_source() -> config_source_pb2.ExtensionConfigSource:
    """Say where the filter comes from; until it is there the listener waits."""
    return config_source_pb2.ExtensionConfigSource(
        config_source=ads(),
        type_urls=[TYPE_PREFIX + filter_pb2.RBAC.DESCRIPTOR.full_name],
    )


def revocations(key_ids: Iterable[str]) -> extension_pb2.TypedExtensionConfig:
    """Return the filter that refuses the credentials with these ids."""
    principals = [_holder_of(key_id) for key_id in sorted(key_ids)]
    config = filter_pb2.RBAC()
    if principals:
        policy = rbac_pb2.Policy(permissions=[rbac_pb2.Permission(any=True)], principals=principals)
        config.rules.action = rbac_pb2.RBAC.DENY
        config.rules.policies["revoked"].CopyFrom(policy)
    return extension_pb2.TypedExtensionConfig(name=NAME, typed_config=pack(config))


def _holder_of(key_id: str) -> rbac_pb2.Principal:
    matcher = metadata_pb2.MetadataMatcher(filter=JWT_FILTER)
    for key in (JWT_CLAIMS, KEY_ID):
        matcher.path.add(key=key)
    matcher.value.string_match.exact = key_id
    return rbac_pb2.Principal(metadata=matcher)
