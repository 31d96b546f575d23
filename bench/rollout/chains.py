"""What Envoy adds to a call: all filters on, beside a chain of one router, beside none at all."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from inference import grpc_service_pb2 as v2

from bench.cores import Cores
from bench.load.generator import Generator, Outcome, Target, built
from bench.rollout.many import until_answers
from tests.unit.gateway.mesh import Mesh
from tests.unit.gateway.rig import ENVOY, free_port

PATH = "/inference.GRPCInferenceService/ModelInfer"
HTTP = "type.googleapis.com/envoy.extensions"
CALLERS = 16
WARMUP_S = 0.3


def minimal_chain(listen: int, replica: str) -> dict[str, object]:
    """Return the bootstrap of an Envoy that routes every call to one replica and does no more."""
    host, _, port = replica.rpartition(":")
    http2 = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": f"{HTTP}.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
    }
    router = {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": f"{HTTP}.filters.http.router.v3.Router"},
    }
    route = {"match": {"prefix": "/"}, "route": {"cluster": "replica", "timeout": "0s"}}
    connections = {
        "@type": f"{HTTP}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "minimal",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [router],
    }
    manager = {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": connections,
    }
    endpoint = {"endpoint": {"address": _address(host, int(port))}}
    return {
        "static_resources": {
            "listeners": [
                {
                    "name": "minimal",
                    "address": _address("127.0.0.1", listen),
                    "filter_chains": [{"filters": [manager]}],
                }
            ],
            "clusters": [
                {
                    "name": "replica",
                    "typed_extension_protocol_options": http2,
                    "load_assignment": {
                        "cluster_name": "replica",
                        "endpoints": [{"lb_endpoints": [endpoint]}],
                    },
                }
            ],
        }
    }


def _address(host: str, port: int) -> dict[str, object]:
    return {"socket_address": {"address": host, "port_value": port}}


@contextmanager
def minimal_envoy(folder: Path, replica: str) -> Iterator[str]:
    """Run an Envoy of one filter; give its address."""
    port = free_port()
    bootstrap = folder / "minimal.json"
    bootstrap.write_text(json.dumps(minimal_chain(port, replica)))
    words = [ENVOY, "-c", bootstrap, "--disable-hot-restart", "--concurrency", "1", "-l", "error"]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


async def compared(
    folder: Path, running: Mesh, replica: str, turns: int, seconds: float
) -> dict[str, float]:
    """Measure the three ways turn about, first one call at a time, then sixteen."""
    generator = await built(Cores.pick().rest)
    body = folder / "call"
    body.write_bytes(v2.ModelInferRequest(model_name=running.model).SerializeToString())
    with minimal_envoy(folder, replica) as minimal:
        await until_answers(minimal)
        headers = dict(running.api_key()) | {"volary-version": "1"}
        ways = {
            "direct": replica,
            "minimal": minimal,
            "whole": f"127.0.0.1:{running.edge_port}",
        }
        targets = {name: Target(at, PATH, body, headers) for name, at in ways.items()}
        one = await _turns(generator, targets, turns, seconds, concurrency=1)
        many = await _turns(generator, targets, turns, seconds, concurrency=CALLERS)
    p50 = {name: median(each.p50_us for each in runs) for name, runs in one.items()}
    rate = {name: median(each.ok_per_s for each in runs) for name, runs in many.items()}
    return {
        "direct_p50_us": p50["direct"],
        "envoy_added_p50_us": p50["whole"] - p50["direct"],
        "minimal_added_p50_us": p50["minimal"] - p50["direct"],
        "direct_per_s": rate["direct"],
        "minimal_per_s": rate["minimal"],
        "envoy_per_s": rate["whole"],
    }


async def _turns(
    generator: Generator, targets: Mapping[str, Target], turns: int, seconds: float, **options: int
) -> dict[str, list[Outcome]]:
    found: dict[str, list[Outcome]] = {name: [] for name in targets}
    for _ in range(turns):
        for name, target in targets.items():
            outcome = await generator.run(target, seconds=seconds, warmup=WARMUP_S, **options)
            if outcome.failed or not outcome.ok:
                raise AssertionError(f"{name}: {outcome}")
            found[name].append(outcome)
    return found
