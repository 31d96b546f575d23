"""Users who come again and again through Envoy, and what becomes of their visits."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
from inference import grpc_service_pb2 as v2
from volary.monitor.v1.monitor_pb2 import Outcome
from volary.monitor.v1.monitor_service_pb2 import RecordOutcomesRequest
from volary_client import AsyncClient

from tests.chaos.mesh import WIDTH

USERS = 300
CALLERS = 4
PAUSE_S = 0.02  # 4 callers make at most 200 calls a second
TELL_S = 0.25
METRIC = "bought"
HEADER = "user-id"
RING, BETA, OTHERS = "x-ring", "beta", "betamax"  # a segment, and who is not of it
SPLIT = "/split/"  # the step of an experiment that splits


@dataclass
class Shoppers:
    """Call always; whoever is shown version v buys with the chance of v.

    `met` are the versions that split by a user, `others` those of users who are not of the segment.
    """

    client: AsyncClient
    model: str
    chances: dict[int, float]
    met: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    others: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._random = random.Random(7)
        self._users = itertools.cycle(
            (f"user-{i}", OTHERS if i % 3 == 0 else BETA) for i in range(USERS)
        )
        self._untold: list[Outcome] = []
        self._request = self.asking(1.0)

    def asking(self, value: float) -> v2.ModelInferRequest:
        """Return a request whose features are all of one value."""
        request = v2.ModelInferRequest(model_name=self.model)
        request.inputs.add(name="features", datatype="FP32", shape=[1, WIDTH])
        request.raw_input_contents.append(np.full((1, WIDTH), value, np.float32).tobytes())
        return request

    @asynccontextmanager
    async def coming(self) -> AsyncIterator[None]:
        """Call, and tell monitor what came of it, for as long as the block lasts."""
        tasks = [asyncio.create_task(self._come()) for _ in range(CALLERS)]
        tasks.append(asyncio.create_task(self._tell()))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        broken = [end for end in ends if not isinstance(end, asyncio.CancelledError)]
        assert not broken, broken

    async def _come(self) -> None:
        while True:
            user, ring = next(self._users)
            reply = await self.client.inference.ModelInfer(
                self._request, metadata=((HEADER, user), (RING, ring)), timeout=30
            )
            version = int(reply.model_version)
            if ring == OTHERS:
                self.others.add(version)
            if SPLIT in reply.parameters["volary_route"].string_param:
                self.met[user].add(version)
            has_bought = self._random.random() < self.chances[version]
            prediction = reply.parameters["volary_prediction_id"].string_param
            self._untold.append(
                Outcome(prediction_id=prediction, metric=METRIC, value=float(has_bought), unit=user)
            )
            await asyncio.sleep(PAUSE_S)

    async def _tell(self) -> None:
        model = f"projects/default/models/{self.model}"
        while True:
            await asyncio.sleep(TELL_S)
            told, self._untold = self._untold, []
            if told:
                await self.client.monitor.RecordOutcomes(
                    RecordOutcomesRequest(model=model, outcomes=told), timeout=30
                )
