"""The response cache, and who answers when the features are away."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
import redis as blocking_redis
from inference import grpc_service_pb2 as v2
from redis.asyncio import Redis
from volary.inference.v1 import prediction_service_pb2
from volary.values.v1 import value_pb2
from volary_cli.launcher.engines import free_port
from volary_inference.domain.responses import (
    NoStore,
    Responses,
    StoreAway,
    key_of,
    packed,
    unpacked,
)
from volary_inference.domain.tensors import Tensor
from volary_inference.reply_store import AGAIN_S, RedisReplies
from volary_kit.clock import SystemClock
from volary_kit.errors import Unavailable
from volary_kit.serving import ResponseCache
from volary_kit.testing import ManualClock, eventually

from . import graphs
from .peers import Peers
from .replica import Replica, raw_request, typed_request

X = Tensor("x", "FP32", np.array([[1, 2]], np.float32))
Y = Tensor("y", "BYTES", np.array([b"a", b""], dtype=object))
ROW = [[1.0, 0.0, 0.0]]


def same(one: tuple[Tensor, ...] | None, other: tuple[Tensor, ...]) -> bool:
    return one is not None and packed(one) == packed(other)


def test_a_question_is_its_version_its_outputs_and_its_typed_bits() -> None:
    asked = key_of("v1", "d", ["y"], [X, Y])
    assert key_of("v1", "d", ["y"], [Y, X]) == asked
    others = [
        ("v2", "d", ["y"], [X, Y]),
        ("v1", "e", ["y"], [X, Y]),
        ("v1", "d", ["z"], [X, Y]),
        ("v1", "d", ["y"], [X]),
        ("v1", "d", ["y"], [replace(X, name="w"), Y]),
        ("v1", "d", ["y"], [replace(X, array=X.array.reshape(2, 1)), Y]),
        ("v1", "d", ["y"], [Tensor("x", "INT32", X.array.view(np.int32)), Y]),
        ("v1", "d", ["y"], [replace(X, array=np.array([[1, 2.0000002]], np.float32)), Y]),
        ("v1", "d", ["y"], [X, replace(Y, array=np.array([b"", b"a"], dtype=object))]),
    ]
    keys = [key_of(*each) for each in others]
    assert len({asked, *keys}) == len(others) + 1


def test_what_is_kept_comes_back_whole_or_not_at_all() -> None:
    value = packed((X, Y))
    assert same(unpacked(value), (X, Y))
    for cut in range(len(value)):
        assert unpacked(value[:cut]) is None
    assert unpacked(value + b"x") is None


class Shelf:
    """A store in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        return self.kept.get(key)

    def put(self, key: str, value: bytes, max_age_us: int) -> None:
        self.kept[key] = value


def test_a_long_reply_is_not_kept_and_a_store_that_is_away_is_a_miss() -> None:
    shelf = Shelf()
    small = Responses(ResponseCache(max_bytes=8), shelf, ManualClock())
    small.put("v", "d", ["x"], [X], (X,))
    assert (shelf.kept, small.counts().too_large) == ({}, 1)
    away = Responses(ResponseCache(), NoStore(), ManualClock())
    assert away.get("v", "d", ["x"], [X]) is None
    away.put("v", "d", ["x"], [X], (X,))
    assert (away.counts().misses.count, away.counts().away) == (1, 2)


def test_redis_keeps_for_a_while_and_costs_milliseconds_when_it_is_gone(redis_url: str) -> None:
    store = RedisReplies(redis_url, 1.0, SystemClock())
    store.put("k", b"v", 60_000_000)
    assert store.get("k") == b"v"
    client = blocking_redis.Redis.from_url(redis_url)
    left_ms = client.pttl("volary:replies:k")
    assert 0 < left_ms <= 60_000
    client.delete("volary:replies:k")
    clock = ManualClock()
    gone = RedisReplies(f"redis://127.0.0.1:{free_port()}/0", 0.005, clock)
    with pytest.raises(StoreAway) as caught:
        gone.get("k")
    assert caught.value.__cause__ is not None
    with pytest.raises(StoreAway) as caught:
        gone.get("k")
    assert caught.value.__cause__ is None, "it is left in peace for a moment"
    clock.advance(AGAIN_S)
    began_s = time.monotonic()
    with pytest.raises(StoreAway):
        gone.get("k")
    assert time.monotonic() - began_s < 0.1


def serving_of(**declared: object) -> bytes:
    return json.dumps({"features": [f"view.f{i}" for i in range(3)], **declared}).encode()


def scraped(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
        return reply.read().decode()


def was_cached(reply: v2.ModelInferResponse) -> bool:
    return reply.parameters["volary_cached"].bool_param


async def test_a_version_that_opts_in_answers_the_same_input_from_what_it_said(
    replica: Replica, peers: Peers, redis: Redis
) -> None:
    caching = serving_of(response_cache={"max_age": "1m"})
    add = peers.registry.add
    peers.gateway.want(
        add(1, graphs.sigmoid_sum(), serving=caching, production=True),
        add(2, graphs.sigmoid_sum(bias=1.0), serving=caching),
        add(3, graphs.sigmoid_sum()),
    )
    metrics_port = free_port()
    replica.start(
        VOLARY_INFERENCE_RESPONSE_CACHE_TIMEOUT_S="1",
        VOLARY_INFERENCE_METRICS_PORT=str(metrics_port),
    )
    await replica.ready()
    stub = replica.v2()
    first = await stub.ModelInfer(raw_request(ROW))
    again = await stub.ModelInfer(raw_request(ROW))
    assert (was_cached(first), was_cached(again)) == (False, True)
    assert again.raw_output_contents == first.raw_output_contents
    assert again.parameters["volary_tier"].string_param == "model"
    assert again.parameters["volary_batch_size"].int64_param == 0
    assert was_cached(await stub.ModelInfer(typed_request(ROW))), "typed or raw, the same bits"
    assert not was_cached(await stub.ModelInfer(raw_request([[1.0, 0.0, 0.5]])))
    other = await stub.ModelInfer(raw_request(ROW, version="2"))
    assert not was_cached(other), "never across versions"
    assert other.raw_output_contents != first.raw_output_contents
    for _ in range(2):
        plain = await stub.ModelInfer(raw_request(ROW, version="3"))
        assert not was_cached(plain), "a version that does not opt in is never answered from it"
    request = v2.ModelStatisticsRequest(name="m", version="1")
    stats = (await stub.ModelStatistics(request)).model_stats[0].inference_stats
    assert (stats.cache_hit.count, stats.cache_miss.count) == (2, 2)
    text = await asyncio.to_thread(scraped, metrics_port)
    labels = 'model="m",outcome="hit",project="default",version="1"'
    assert f"volary_response_cache_looks_total{{{labels}}} 2.0" in text
    assert "volary_graphs_evicted_total 0.0" in text


async def test_without_features_the_declared_tiers_answer_by_entity(
    replica: Replica, peers: Peers
) -> None:
    declared = {
        1: serving_of(),
        2: serving_of(fallback={"none": True}),
        3: serving_of(fallback={"rule": "if(view.f2 > 1, 0.75, 0.25)", "none": True}),
        4: serving_of(fallback={"cache": {"max_age": "1m"}, "none": True}),
    }
    peers.gateway.want(
        *(
            peers.registry.add(
                number, graphs.sigmoid_sum(), serving=text,
                feature_set="set@3", schema_hash="hash-3", production=number == 1,
            )
            for number, text in declared.items()
        )
    )  # fmt: skip
    replica.start()
    await replica.ready()
    stub = replica.predictions()

    def asked(version: int, entity: str, **fields: float) -> prediction_service_pb2.PredictRequest:
        return prediction_service_pb2.PredictRequest(
            model="m", version=version,
            entity_keys={"plane": entity},
            request_fields={
                name.replace("_", ".", 1): value_pb2.Value(number_value=number)
                for name, number in fields.items()
            },
        )  # fmt: skip

    before = await stub.Predict(asked(4, "a"))
    assert before.provenance.tier == "model"
    peers.features.failure = Unavailable("DOWN", "told to")
    with pytest.raises(Unavailable):
        await stub.Predict(asked(1, "a"))
    assert (await stub.Predict(asked(2, "a"))).provenance.tier == "none"
    ruled = await stub.Predict(asked(3, "a", view_f2=2.0))
    assert (ruled.provenance.tier, ruled.score) == ("rule", 0.75)
    assert (await stub.Predict(asked(3, "a"))).provenance.tier == "none", (
        "the rule knows too little"
    )
    kept = await stub.Predict(asked(4, "a"))
    assert (kept.provenance.tier, kept.score) == ("cache", before.score)
    assert (await stub.Predict(asked(4, "b"))).provenance.tier == "none"

    async def has_counted() -> bool:
        stats = await replica.v2().ModelStatistics(v2.ModelStatisticsRequest(name="m"))
        return sum(row.inference_stats.fail.count for row in stats.model_stats) == 6

    await eventually(has_counted, within_s=5, what="the failures")
