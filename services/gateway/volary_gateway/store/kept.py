"""What versions said last, as inference keeps it in Redis."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from google.protobuf.message import DecodeError
from inference import grpc_service_pb2 as v2
from redis.asyncio import Redis
from redis.exceptions import RedisError
from volary_kit.clock import Clock
from volary_kit.last_predictions import REPLIED_AT

log = logging.getLogger(__name__)
LOOK_S = 0.25  # the caller waits: after that nothing is known


class KeptPredictions:
    """Look up what was said; trouble with Redis is an answer, too: nothing."""

    def __init__(self, redis: Redis, clock: Clock) -> None:
        self._redis = redis
        self._clock = clock

    async def first(
        self, keys: Sequence[str], max_age_us: int
    ) -> tuple[v2.ModelInferResponse, int] | None:
        """Return the first kept reply that is young enough, and its age in microseconds."""
        try:
            async with asyncio.timeout(LOOK_S):
                found = await self._redis.mget(keys)
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("last predictions cannot be read: %s", type(error).__name__)
            return None
        for value in found:
            reply = _read(value)
            if reply is None:
                continue
            age_us = max(0, self._clock.now_us() - reply.parameters[REPLIED_AT].int64_param)
            if age_us <= max_age_us:
                return reply, age_us
        return None


def _read(value: object) -> v2.ModelInferResponse | None:
    if not isinstance(value, bytes):
        return None
    try:
        reply = v2.ModelInferResponse.FromString(value)
    except DecodeError:
        return None
    return reply if len(reply.outputs) == len(reply.raw_output_contents) else None
