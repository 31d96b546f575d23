"""Kept replies in Redis: an answer within milliseconds, or none."""

from __future__ import annotations

import threading

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from volary_kit.clock import Clock
from volary_kit.waiting import about_to_wait

from volary_inference.domain.responses import StoreAway

PREFIX = "volary:replies:"
MILLIS = 1_000  # microseconds
AGAIN_S = 0.25  # after trouble nobody waits for Redis for so long


class RedisReplies:
    """A store that is left in peace for a moment once it did not answer in time."""

    def __init__(self, url: str, timeout_s: float, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._away_until_s = float("-inf")
        # redis-py's own retries would make of milliseconds a second
        self._client = redis.Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )

    def get(self, key: str) -> bytes | None:
        """Return what is kept under a key; raise StoreAway."""
        self._require_near()
        try:
            found = self._client.get(PREFIX + key)
        except RedisError as error:
            raise self._away() from error
        return found if isinstance(found, bytes) else None

    def put(self, key: str, value: bytes, max_age_us: int) -> None:
        """Keep a value for a while; raise StoreAway."""
        self._require_near()
        try:
            self._client.set(PREFIX + key, value, px=max(1, max_age_us // MILLIS))
        except RedisError as error:
            raise self._away() from error

    def _require_near(self) -> None:
        with self._lock:
            if self._clock.monotonic_s() < self._away_until_s:
                raise StoreAway
        about_to_wait()

    def _away(self) -> StoreAway:
        with self._lock:
            self._away_until_s = self._clock.monotonic_s() + AGAIN_S
        return StoreAway()
