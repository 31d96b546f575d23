"""The last predictions of versions that declare a cache, in Redis: they outlive the replica.

Gateway answers with them once no replica of the model is left. A write never holds up a call:
while Redis is away what was said waits here, and where there is no room for it the oldest is
forgotten.
"""

from __future__ import annotations

import logging
import threading
from collections import deque

import redis
from inference import grpc_service_pb2 as pb
from redis.exceptions import RedisError
from volary_kit.clock import Clock
from volary_kit.last_predictions import REPLIED_AT, key_of_entity, key_of_inputs

from volary_inference.domain.guarding import Said
from volary_inference.domain.tensors import to_raw
from volary_inference.handlers.v2_tensors import fill_outputs, fill_provenance

log = logging.getLogger(__name__)
CAPACITY = 1_024
BATCH = 256
MILLIS = 1_000  # microseconds
RETRY_S = 1.0


class LastPredictions:
    """Writes what was said last, on a thread of its own."""

    def __init__(self, client: redis.Redis, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._said: deque[tuple[int, Said]] = deque(maxlen=CAPACITY)
        self._changed = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._work, name="last predictions", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Write what is left, within `timeout_s`."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)

    def keep(self, said: Said) -> None:
        """Keep what a version said, in place of what it said before."""
        with self._changed:
            self._said.append((self._clock.now_us(), said))
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._said or self._is_closing)
                taken = [self._said.popleft() for _ in range(min(BATCH, len(self._said)))]
            if not taken:
                return
            try:
                self._write(taken)
            except (RedisError, OSError) as error:
                log.warning("last predictions wait: %s", type(error).__name__)
                with self._changed:
                    if self._is_closing:
                        return
                    room = CAPACITY - len(self._said)  # what came meanwhile is newer
                    self._said.extendleft(reversed(taken[-room:] if room else []))
                    self._changed.wait_for(lambda: self._is_closing, RETRY_S)

    def _write(self, taken: list[tuple[int, Said]]) -> None:
        pipeline = self._client.pipeline(transaction=False)
        for at_us, said in taken:
            pipeline.set(key_of(said), value_of(said, at_us), px=max(1, said.max_age_us // MILLIS))
        pipeline.execute()


def key_of(said: Said) -> str:
    """Return the name that gateway finds it by."""
    request, version = said.request, said.request.key.name
    if request.about.entity_keys:
        return key_of_entity(version, request.about.entity_keys)
    inputs = [(each.name, each.datatype, each.shape, to_raw(each)) for each in request.inputs]
    return key_of_inputs(version, request.outputs, inputs)


def value_of(said: Said, at_us: int) -> bytes:
    """Return the reply as bytes, with the time at which it was given."""
    reply = said.reply
    found = pb.ModelInferResponse(model_version=str(reply.provenance.key.version))
    fill_outputs(found, reply.outputs, is_raw=True)
    fill_provenance(found, reply.provenance)
    found.parameters[REPLIED_AT].int64_param = at_us
    return found.SerializeToString()
