"""How often, when and where else an attempt is made again: of a cluster, so no step repeats it."""

# pyright: reportAttributeAccessIssue=false, reportInvalidTypeForm=false
# (xds-protos ships no type stubs)

from __future__ import annotations

from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2
from envoy.extensions.retry.priority.previous_priorities.v3 import (
    previous_priorities_config_pb2,
)
from google.protobuf.wrappers_pb2 import UInt32Value

from volary_gateway.xds.packing import pack, seconds

RETRIES = 3
# how often another host is drawn in place of one that has failed the call: by weights the heavier
# of two hosts is drawn many times on end, and one that has died keeps its weight for a while
DRAWS = 64
# attempts after a crash follow each other at once; a replica that drains refuses its stream, one
# that is stopped in mid-call answers CANCELLED
RETRY_ON = "connect-failure,refused-stream,reset,unavailable,cancelled"
RETRY_BASE_S = 0.001
RETRY_MAX_S = 0.01


def retries() -> route_components_pb2.RetryPolicy:
    """Return the retries of calls to replicas: each attempt at another host."""
    policy = route_components_pb2.RetryPolicy(
        retry_on=RETRY_ON,
        num_retries=UInt32Value(value=RETRIES),
        host_selection_retry_max_attempts=DRAWS,
    )
    # with a fallback: dead replicas that Envoy takes for healthy still, the last attempt passes
    # them by; without one there is but one priority
    policy.retry_priority.name = "envoy.retry_priorities.previous_priorities"
    policy.retry_priority.typed_config.CopyFrom(
        pack(previous_priorities_config_pb2.PreviousPrioritiesConfig(update_frequency=RETRIES))
    )
    policy.retry_back_off.base_interval.CopyFrom(seconds(RETRY_BASE_S))
    policy.retry_back_off.max_interval.CopyFrom(seconds(RETRY_MAX_S))
    policy.retry_host_predicate.add(
        name="envoy.retry_host_predicates.previous_hosts",
        typed_config=pack(previous_hosts_pb2.PreviousHostsPredicate()),
    )
    return policy
