"""Rate limits at the edge: a filter that comes apart from the listener, so it may change."""

# pyright: reportAttributeAccessIssue=false, reportInvalidTypeForm=false
# (xds-protos ships no type stubs)

from __future__ import annotations

from collections.abc import Iterable

from envoy.config.core.v3 import base_pb2, config_source_pb2, extension_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.common.ratelimit.v3 import ratelimit_pb2
from envoy.extensions.filters.http.local_ratelimit.v3 import local_rate_limit_pb2
from envoy.type.v3 import token_bucket_pb2
from google.protobuf.wrappers_pb2 import BoolValue, UInt32Value

from volary_gateway.domain.limits import Limit, LimitKind
from volary_gateway.xds.packing import TYPE_PREFIX, ads, pack, seconds

NAME = "volary.limits"
RateLimit = local_rate_limit_pb2.LocalRateLimit
Descriptor = ratelimit_pb2.LocalRateLimitDescriptor
Entry = ratelimit_pb2.RateLimitDescriptor.Entry
PROJECT, PRINCIPAL, MODEL = "project", "principal", "model"
# what no limit names passes: the filter wants a bucket, and this one is never drawn from
UNLIMITED = 0xFFFF_FFFF
MAX_CLIENTS = 65_536  # buckets of single principals that are kept; the least used one goes
# a fill that is finer than this is refused by Envoy
FILL_S = 0.05


def limits_source() -> config_source_pb2.ExtensionConfigSource:
    """Say where the filter comes from; until it is there the listener waits."""
    return config_source_pb2.ExtensionConfigSource(
        config_source=ads(), type_urls=[TYPE_PREFIX + RateLimit.DESCRIPTOR.full_name]
    )


def limits(rows: Iterable[Limit]) -> extension_pb2.TypedExtensionConfig:
    """Return the filter that answers RESOURCE_EXHAUSTED once a bucket is empty."""
    config = RateLimit(
        stat_prefix="limits",
        token_bucket=token_bucket_pb2.TokenBucket(
            max_tokens=UNLIMITED,
            tokens_per_fill=UInt32Value(value=UNLIMITED),
            fill_interval=seconds(1),
        ),
        filter_enabled=_always(),
        filter_enforced=_always(),
        always_consume_default_token_bucket=BoolValue(value=False),
        rate_limited_as_resource_exhausted=True,
        max_dynamic_descriptors=UInt32Value(value=MAX_CLIENTS),
        rate_limits=[
            _counted_by({"volary-project": PROJECT, "volary-principal": PRINCIPAL}),
            _counted_by({"volary-project": PROJECT, "volary-model": MODEL}),
        ],
        descriptors=[_descriptor(limit) for limit in sorted(rows)],
    )
    return extension_pb2.TypedExtensionConfig(name=NAME, typed_config=pack(config))


def _always() -> base_pb2.RuntimeFractionalPercent:
    always = base_pb2.RuntimeFractionalPercent()
    always.default_value.numerator = 100
    return always


def _counted_by(headers: dict[str, str]) -> route_components_pb2.RateLimit:
    """Describe a call by headers that only the edge sets."""
    counted = route_components_pb2.RateLimit()
    for header, key in headers.items():
        action = counted.actions.add().request_headers
        action.header_name, action.descriptor_key = header, key
    return counted


def _descriptor(limit: Limit) -> Descriptor:
    name = limit.name
    if name.kind is LimitKind.MODEL:
        entries = [
            Entry(key=PROJECT, value=name.project),
            Entry(key=MODEL, value=name.subject),
        ]
    else:
        # an entry without a value is a bucket for each value that comes
        holder = "" if name.is_for_each else f"principals/{name.subject}"
        entries = [Entry(key=PROJECT, value=name.project), Entry(key=PRINCIPAL, value=holder)]
    return Descriptor(entries=entries, token_bucket=_bucket(limit))


def _bucket(limit: Limit) -> token_bucket_pb2.TokenBucket:
    """Return a bucket that fills in as fine steps as Envoy takes, whole calls each."""
    steps = min(int(1 / FILL_S), limit.calls_per_s)
    while limit.calls_per_s % steps:
        steps -= 1
    return token_bucket_pb2.TokenBucket(
        max_tokens=limit.burst,
        tokens_per_fill=UInt32Value(value=limit.calls_per_s // steps),
        fill_interval=seconds(1 / steps),
    )
