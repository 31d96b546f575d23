"""V2 over HTTP through Envoy: a stock client with an API key, split and refused as gRPC is."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from redis.asyncio import Redis
from volary_gateway.domain.limits import Limit, LimitKind, LimitName
from volary_gateway.domain.names import VersionName
from volary_gateway.domain.traffic import Traffic, Weight
from volary_kit.testing import eventually

from tests.unit.gateway.rig import Backend, Rig, free_port, rig
from tests.unit.gateway.stock import MODEL, WHOLE, one_replica, publish, require_answered, serve

CALLS = Path(__file__).parents[1] / "inference" / "triton_http_calls.py"
READY_S = 30.0
BODY = json.dumps(
    {"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [1, 0, 0]}]}
)


@asynccontextmanager
async def translator(folder: Path, port: int, upstream: str) -> AsyncIterator[str]:
    """One `python -m volary_inference.rest`."""
    environment = {
        "VOLARY_REST_PORT": str(port),
        "VOLARY_REST_UPSTREAM_ADDRESS": upstream,
        "VOLARY_REST_DATA_DIR": str(folder),
        "VOLARY_REST_DRAIN_DELAY_S": "0",
    }
    with (folder / "rest.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: ASYNC220 - returns once it has forked
            [sys.executable, "-m", "volary_inference.rest"],
            env=os.environ | environment, stdout=log, stderr=log,
        )  # fmt: skip
    at = f"127.0.0.1:{port}"
    try:
        async with aiohttp.ClientSession() as session:

            async def is_alive() -> bool:
                try:
                    async with session.get(f"http://{at}/livez") as response:
                        return response.status == 200
                except aiohttp.ClientError:
                    return False

            await eventually(is_alive, within_s=READY_S, what="a translator")
        yield at
    finally:
        process.terminate()
        assert await asyncio.to_thread(process.wait, 20) == 0


async def ask(
    running: Rig, verb: str, path: str, body: str = "", **headers: str
) -> tuple[int, dict[str, Any]]:
    async with (
        aiohttp.ClientSession() as session,
        session.request(
            verb, f"http://127.0.0.1:{running.port}{path}", data=body,
            headers={k.replace("_", "-"): v for k, v in headers.items()},
        ) as response,
    ):  # fmt: skip
        return response.status, json.loads(await response.read())


async def test_a_stock_http_client_works_through_the_edge(
    tmp_path: Path, redis: Redis, redis_url: str
) -> None:
    rest_port = free_port()
    async with (
        one_replica(tmp_path, redis_url) as (keys, address),
        rig(tmp_path, key=keys.issuer, rest=f"127.0.0.1:{rest_port}") as running,
        translator(tmp_path, rest_port, f"127.0.0.1:{running.port}"),
    ):
        await serve(running, address)
        await require_answered(CALLS, f"127.0.0.1:{running.port}", keys.api_key(), "")


async def test_the_split_the_limits_and_the_refusals_are_those_of_grpc(tmp_path: Path) -> None:
    rest_port = free_port()
    backends = [Backend("a").start(), Backend("b").start()]
    for backend in backends:
        await backend.server.start()
    async with (
        rig(tmp_path, rest=f"127.0.0.1:{rest_port}") as running,
        translator(tmp_path, rest_port, f"127.0.0.1:{running.port}"),
    ):
        at = tuple(backend.address for backend in backends)
        ready = {VersionName.of(MODEL, n): (at[n - 1],) for n in (1, 2)}
        traffic = Traffic(MODEL, 1, (Weight(1, 5_000), Weight(2, 5_000)), production=1)
        limit = Limit(LimitName("default", LimitKind.PRINCIPAL, "few"), 1, 10, 0)
        await publish(running, traffic, ready, at, limits=(limit,))
        infer = "/v2/models/m/infer"
        key = running.token()
        for _ in range(40):
            status, reply = await ask(
                running, "POST", infer, BODY, x_api_key=key,
                volary_version="9", volary_route="forged", volary_project="other",
            )  # fmt: skip
            assert status == 200, reply
        calls = [call for backend in backends for call in backend.calls()]
        assert len(calls) == 40
        assert {call["volary-version"] for call in calls} == {"1", "2"}
        assert {call["volary-route"] for call in calls} == {str(traffic.route)}
        assert {call["volary-project"] for call in calls} == {"default"}
        status, reply = await ask(
            running, "POST", "/v2/models/m/versions/2/infer", BODY, x_api_key=key
        )
        assert (status, backends[1].calls()[-1]["volary-version"]) == (200, "2")
        assert "volary-route" not in backends[1].calls()[-1]

        few = running.token(principal="few")
        seen = [(await ask(running, "POST", infer, BODY, x_api_key=few))[0] for _ in range(14)]
        assert seen[:10] == [200] * 10, "one call takes one from the bucket, not two"
        assert 429 in seen

        assert await ask(running, "GET", "/v2/health/live") == (200, {"live": True})
        refusals = [
            ("POST", infer, BODY, {}, 401),
            ("POST", infer, BODY, {"x_api_key": "none"}, 401),
            ("POST", infer, "{", {"x_api_key": key}, 400),
            ("POST", "/v2/models/none/infer", BODY, {"x_api_key": key}, 404),
            ("POST", "/v2/repository/models/m/load", "{}", {"x_api_key": key}, 501),
            ("GET", "/v2/nothing", "", {"x_api_key": key}, 404),
        ]
        for verb, path, body, headers, expected in refusals:
            status, reply = await ask(running, verb, path, body, **headers)
            assert (status, bool(reply["error"])) == (expected, True), (path, reply)
        # what was there before still is: a method as JSON, and what is no method
        status, reply = await ask(
            running, "POST", "/inference.GRPCInferenceService/ModelReady", '{"name": "m"}',
            x_api_key=key, content_type="application/json",
        )  # fmt: skip
        assert (status, reply["ready"]) == (200, True)

    for backend in backends:
        await backend.server.stop(None)


async def test_a_revoked_key_and_an_absent_translator_are_told_in_json(tmp_path: Path) -> None:
    async with rig(tmp_path, rest=f"127.0.0.1:{free_port()}") as running:
        ready = {VersionName.of(MODEL, 1): ("127.0.0.1:1",)}
        await publish(running, WHOLE, ready, ("127.0.0.1:1",), revoked=("gone",))
        revoked = running.token(key_id="gone")
        status, reply = await ask(running, "GET", "/v2", x_api_key=revoked)
        assert (status, reply["reason"]) == (401, "CREDENTIAL_REVOKED")
        status, reply = await ask(running, "GET", "/v2", x_api_key=running.token())
        assert (status, bool(reply["error"])) == (503, True)
