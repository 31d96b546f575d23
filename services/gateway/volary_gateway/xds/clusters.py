"""Clusters and endpoints: one pair a version, one for any replica, one a service."""

# pyright: reportAttributeAccessIssue=false, reportInvalidTypeForm=false
# (xds-protos ships no type stubs)

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from envoy.config.cluster.v3 import circuit_breaker_pb2, cluster_pb2, outlier_detection_pb2
from envoy.config.core.v3 import address_pb2, extension_pb2, health_check_pb2, protocol_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3 import (
    client_side_weighted_round_robin_pb2,
)
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from envoy.type.v3 import percent_pb2
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.wrappers_pb2 import BoolValue, UInt32Value

from volary_gateway.xds.packing import address, ads, pack, seconds
from volary_gateway.xds.retries import retries

Cluster = cluster_pb2.Cluster
MAX_REQUESTS = 65_536  # admission is the replica's: a breaker that trips first would hide it
MIN_RETRY_CONCURRENCY = 200  # the default of 3 starves the retries of a crash
RETRY_BUDGET_PERCENT = 60.0  # one of two replicas takes half of the calls with it
CONNECT_TIMEOUT_S = 0.5
CHECK_AUTHORITY = "inference"
CHECK_JITTER_PERCENT = 20
REPLICAS_FIRST = 100_000  # percent: one healthy replica of a thousand is enough
BY_LOAD = "envoy.load_balancing_policies.client_side_weighted_round_robin"
# thousands of clusters look at their weights on the thread that takes pushes, 6 ms at 2,000 of
# them: not more often than it matters
WEIGHTS_S = 5.0
# and another 4 ms at their hosts' outliers. What ejects here, failures in a row, does so at once. A
# look takes back who is well again where no health check has seen it fail: a cluster without calls
# is checked seldom, and its replica stayed away for as long as a look lets it wait
OUTLIERS_S = 2.0
TRUSTED_AFTER_S = 3.0  # a replica that has just come reports what its first calls took
FORGOTTEN_AFTER_S = 30.0  # of a replica that stopped to report
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def replica_cluster(name: str) -> Cluster:
    """Return a cluster whose endpoints are replicas: those that report a version ready, or any.

    It carries the retries, which no step pushes again.

    Replies of a failing version never eject its hosts: that would hide from the judge what
    the version does. Only what the host itself does wrong ejects it, and briefly, since a
    replica is back in seconds.
    """
    options = _http_options()
    options.retry_policy.CopyFrom(retries())
    return Cluster(
        name=name,
        type=Cluster.EDS,
        eds_cluster_config=Cluster.EdsClusterConfig(eds_config=ads()),
        connect_timeout=seconds(CONNECT_TIMEOUT_S),
        load_balancing_policy=_by_load(),
        typed_extension_protocol_options={HTTP_OPTIONS: pack(options)},
        circuit_breakers=_breakers(),
        outlier_detection=_ejection(),
        health_checks=[_health_check()],
        ignore_health_on_host_removal=True,
        common_lb_config=_no_panic(),
    )


def endpoints(
    name: str, addresses: Iterable[str], fallback: str = ""
) -> endpoint_pb2.ClusterLoadAssignment:
    """Return the endpoints of a cluster, in order of address; the fallback's comes last.

    As long as one replica is healthy it gets every call: by default half of them ill would send
    a third of the calls to the fallback.
    """
    group = endpoint_components_pb2.LocalityLbEndpoints(
        lb_endpoints=[_endpoint(address_pb2.Address(**address(at))) for at in sorted(addresses)]
    )
    found = endpoint_pb2.ClusterLoadAssignment(cluster_name=name, endpoints=[group])
    if fallback:
        found.policy.overprovisioning_factor.value = REPLICAS_FIRST
        last = endpoint_components_pb2.LocalityLbEndpoints(
            priority=1, lb_endpoints=[_endpoint(address_pb2.Address(**address(fallback)))]
        )
        last.lb_endpoints[0].endpoint.health_check_config.disable_active_health_check = True
        found.endpoints.append(last)
    return found


def fixed_cluster(name: str, host_port: str) -> Cluster:
    """Return a cluster of one known address; a host name is resolved."""
    return Cluster(
        name=name,
        type=Cluster.STATIC if _is_ip(host_port) else Cluster.STRICT_DNS,
        connect_timeout=seconds(CONNECT_TIMEOUT_S),
        typed_extension_protocol_options={HTTP_OPTIONS: _http2()},
        circuit_breakers=_breakers(),
        common_lb_config=_no_panic(),
        load_assignment=endpoints(name, [host_port]),
    )


def rest_cluster(name: str, host_port: str) -> Cluster:
    """Return the cluster of the translators from HTTP: HTTP/1.1, one address or a name of many."""
    cluster = fixed_cluster(name, host_port)
    options = http_protocol_options_pb2.HttpProtocolOptions()
    options.explicit_http_config.http_protocol_options.CopyFrom(protocol_pb2.Http1ProtocolOptions())
    options.retry_policy.CopyFrom(retries())
    cluster.typed_extension_protocol_options[HTTP_OPTIONS].CopyFrom(pack(options))
    return cluster


def _endpoint(at: address_pb2.Address) -> endpoint_components_pb2.LbEndpoint:
    return endpoint_components_pb2.LbEndpoint(endpoint=endpoint_components_pb2.Endpoint(address=at))


def _http2() -> AnyMessage:
    return pack(_http_options())


def _http_options() -> http_protocol_options_pb2.HttpProtocolOptions:
    options = http_protocol_options_pb2.HttpProtocolOptions()
    options.explicit_http_config.http2_protocol_options.CopyFrom(
        protocol_pb2.Http2ProtocolOptions()
    )
    return options


def _by_load() -> cluster_pb2.LoadBalancingPolicy:
    """Go round by weights: a replica that holds more calls for what it answers gets fewer.

    They come with the replies (ORCA): a stream of reports from each host to each cluster would
    be thousands. A host that reports nothing weighs what the others do on average.
    """
    config = client_side_weighted_round_robin_pb2.ClientSideWeightedRoundRobin(
        blackout_period=seconds(TRUSTED_AFTER_S),
        weight_expiration_period=seconds(FORGOTTEN_AFTER_S),
        weight_update_period=seconds(WEIGHTS_S),
    )
    found = cluster_pb2.LoadBalancingPolicy()
    found.policies.add().typed_extension_config.CopyFrom(
        extension_pb2.TypedExtensionConfig(name=BY_LOAD, typed_config=pack(config))
    )
    return found


def _no_panic() -> Cluster.CommonLbConfig:
    """Never send to hosts known to be bad: the default sends to all below 50 %."""
    return Cluster.CommonLbConfig(healthy_panic_threshold=percent_pb2.Percent(value=0))


def _breakers() -> circuit_breaker_pb2.CircuitBreakers:
    limits = circuit_breaker_pb2.CircuitBreakers.Thresholds(
        max_connections=UInt32Value(value=MAX_REQUESTS),
        max_pending_requests=UInt32Value(value=MAX_REQUESTS),
        max_requests=UInt32Value(value=MAX_REQUESTS),
    )
    limits.retry_budget.budget_percent.value = RETRY_BUDGET_PERCENT
    limits.retry_budget.min_retry_concurrency.value = MIN_RETRY_CONCURRENCY
    return circuit_breaker_pb2.CircuitBreakers(thresholds=[limits])


def _ejection() -> outlier_detection_pb2.OutlierDetection:
    return outlier_detection_pb2.OutlierDetection(
        interval=seconds(OUTLIERS_S),
        base_ejection_time=seconds(1),
        max_ejection_time=seconds(5),
        max_ejection_percent=UInt32Value(value=100),
        split_external_local_origin_errors=True,
        consecutive_local_origin_failure=UInt32Value(value=3),
        enforcing_consecutive_local_origin_failure=UInt32Value(value=100),
        enforcing_local_origin_success_rate=UInt32Value(value=0),
        enforcing_consecutive_5xx=UInt32Value(value=0),
        enforcing_consecutive_gateway_failure=UInt32Value(value=0),
        enforcing_success_rate=UInt32Value(value=0),
    )


def _health_check() -> health_check_pb2.HealthCheck:
    return health_check_pb2.HealthCheck(
        timeout=seconds(1),
        interval=seconds(1),
        # thousands of clusters were made at once: their checks must not come at once for ever
        interval_jitter_percent=CHECK_JITTER_PERCENT,
        # a cluster without calls is looked at seldom once its host is found healthy; until then
        # often: at the start of thousands the first check of many takes longer than it may
        no_traffic_interval=seconds(0.5),
        no_traffic_healthy_interval=seconds(30),
        unhealthy_interval=seconds(0.5),
        unhealthy_threshold=UInt32Value(value=2),
        healthy_threshold=UInt32Value(value=1),
        reuse_connection=BoolValue(value=True),
        # by default the authority is the cluster's name: its slashes are no host (RFC 3986, 3.2.2),
        # and a server that reads it as one resets the call
        grpc_health_check=health_check_pb2.HealthCheck.GrpcHealthCheck(authority=CHECK_AUTHORITY),
    )


def _is_ip(host_port: str) -> bool:
    try:
        ipaddress.ip_address(host_port.rpartition(":")[0].strip("[]"))
    except ValueError:
        return False
    return True
