"""What a version declares moves it to another engine, which its answers do not show."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from inference import grpc_service_pb2 as v2
from volary_kit.errors import VolaryError

from . import graphs
from .peers import Peers
from .replica import Replica, raw_request, typed_request

FEATURES = ["a", "b", "c"]
DECLARED: dict[int, dict[str, Any]] = {
    1: {},
    2: {"fallback": {"rule": "if(a > 1, 0.75, 0.25)", "none": True}},
    3: {"fallback": {"cache": {"max_age": "1m"}, "none": True}},
    4: {"breaker": {"failures": 0.5, "calls": 4, "open_for": "60s"}},
    5: {"instances": 2},
    6: {
        "bands": [{"below": 0.5, "code": "LOW", "action": "wait"}, {"code": "HIGH", "action": "go"}]
    },
}
ROWS = [[1.0, 0.0, 0.5], [-2.0, 0.25, 0.0], [3.0, 3.0, 3.0]]
Outcome = tuple[Any, ...]


def requests() -> Iterator[v2.ModelInferRequest]:
    """What is answered, and what each engine has to refuse alike."""
    yield raw_request(ROWS[:1])
    yield raw_request(ROWS)
    yield typed_request(ROWS)
    subject = raw_request(ROWS[1:2])
    subject.parameters["volary_subject"].string_param = "plane-1"
    yield subject
    for priority in (1, 9):  # there is no ninth
        first = raw_request(ROWS[:1])
        first.parameters["priority"].int64_param = priority
        yield first
    yield raw_request([[float("nan"), 0.0, 0.0]])
    yield raw_request([[1.0, 2.0]])
    unknown = raw_request(ROWS[:1])
    unknown.outputs.add(name="nobody")
    yield unknown
    short = raw_request(ROWS[:1])
    short.raw_input_contents[0] = short.raw_input_contents[0][:-1]
    yield short


def said(reply: v2.ModelInferResponse) -> Outcome:
    tier = reply.parameters["volary_tier"].string_param
    specs = [(each.name, each.datatype, tuple(each.shape)) for each in reply.outputs]
    return reply.id, tier, specs, list(reply.raw_output_contents), str(reply.outputs)


async def answered(stub: Any, request: v2.ModelInferRequest) -> Outcome:
    try:
        return said(await stub.ModelInfer(request))
    except VolaryError as error:
        return type(error).__name__, error.reason, str(error)


async def streamed(stub: Any, asked: list[v2.ModelInferRequest]) -> list[Outcome]:
    async def sent() -> AsyncIterator[v2.ModelInferRequest]:
        for request in asked:
            yield request

    replies = [reply async for reply in stub.ModelStreamInfer(sent())]
    return [(reply.error_message, *said(reply.infer_response)) for reply in replies]


@pytest.mark.timeout(180)
async def test_every_version_of_one_graph_says_the_same_whatever_it_declares(
    replica: Replica, peers: Peers
) -> None:
    peers.gateway.want(
        *(
            peers.registry.add(
                version,
                graphs.sigmoid_sum(),
                serving=json.dumps({"features": FEATURES} | declared).encode() if declared else b"",
                production=version == 1,
            )
            for version, declared in DECLARED.items()
        )
    )
    replica.start()
    await replica.ready()
    stub = replica.v2()
    found: dict[int, list[Outcome]] = {}
    for version in DECLARED:
        asked = list(requests())
        for request in asked:
            request.model_version = str(version)
        found[version] = [await answered(stub, request) for request in asked]
        found[version] += await streamed(stub, asked)
        statistics = v2.ModelStatisticsRequest(name="m", version=str(version))
        stats = (await stub.ModelStatistics(statistics)).model_stats[0]
        found[version].append((stats.inference_stats.success.count, stats.inference_count))
    assert [len(outcome) for outcome in found[1][:10]] == [5] * 5 + [3] * 5
    for version, outcomes in found.items():
        assert outcomes == found[1], DECLARED[version]
