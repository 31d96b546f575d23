"""Clients that never stop calling through Envoy, and what became of each of their calls."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import numpy as np
from inference import grpc_service_pb2 as v2
from inference import grpc_service_pb2_grpc as v2_grpc
from volary_kit.testing import eventually

from tests.chaos.mesh import MODEL, WIDTH

CALLERS = 4
PAUSE_S = 0.05  # 4 callers make at most 80 calls a second: enough evidence, little load
ATTEMPT_S = 5.0
PATIENCE_S = 20.0  # a call that fails is made again for as long as this
AGAIN_S = 0.05
Infer = Callable[..., Awaitable[v2.ModelInferResponse]]
CHANNEL = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]


@dataclass
class Tally:
    """What became of the calls of one stretch of time.

    `broken` counts attempts that failed and why, `hurt` the calls that needed another attempt,
    `failed` those that never succeeded, `open` those that have not ended.
    """

    open: int = 0
    calls: int = 0
    hurt: int = 0
    by_version: Counter[int] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)


class Callers:
    """Call without a pause; `turn` begins a new tally and returns the one before."""

    def __init__(self, address: str, api_key: str) -> None:
        self._address = address
        self._key = (("x-api-key", api_key),)
        self._tally = Tally()
        self._is_over = False
        self._request = _request()

    async def turn(self) -> Tally:
        """Return what became of the calls since the last turn, once each of them has ended."""
        before, self._tally = self._tally, Tally()

        async def is_over() -> bool:
            return not before.open

        await eventually(is_over, within_s=2 * PATIENCE_S, what="the end of the calls")
        return before

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[None]:
        """Call for as long as the block lasts; calls that run are answered first."""
        async with grpc.aio.insecure_channel(self._address, options=CHANNEL) as channel:
            infer = v2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
            tasks = [asyncio.create_task(self._call_always(infer)) for _ in range(CALLERS)]
            try:
                yield
            finally:
                self._is_over = True
                await asyncio.gather(*tasks)

    async def _call_always(self, infer: Infer) -> None:
        while not self._is_over:
            await self._call(infer)
            await asyncio.sleep(PAUSE_S)

    async def _call(self, infer: Infer) -> None:
        tally = self._tally
        tally.open += 1
        give_up_s = time.monotonic() + PATIENCE_S
        is_hurt = False
        while True:
            try:
                reply = await infer(self._request, timeout=ATTEMPT_S, metadata=self._key)
            except grpc.aio.AioRpcError as error:
                what = f"{error.code().name}: {error.details()}"
                tally.broken[what] += 1
                is_hurt = True
                if time.monotonic() > give_up_s:
                    tally.failed.append(what)
                    break
                await asyncio.sleep(AGAIN_S)
            else:
                tally.by_version[int(reply.model_version)] += 1
                break
        tally.calls += 1
        tally.hurt += is_hurt
        tally.open -= 1


def _request() -> v2.ModelInferRequest:
    request = v2.ModelInferRequest(model_name=MODEL)
    request.inputs.add(name="features", datatype="FP32", shape=[1, WIDTH])
    request.raw_input_contents.append(np.ones((1, WIDTH), np.float32).tobytes())
    return request
