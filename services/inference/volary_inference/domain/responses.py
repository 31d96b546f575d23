"""Replies of a version to inputs that it has seen, kept where other replicas find them too."""

from __future__ import annotations

import hashlib
import json
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from volary_kit import serving
from volary_kit.clock import Clock
from volary_kit.errors import InvalidArgument

from volary_inference.domain.statistics import Total
from volary_inference.domain.tensors import Tensor, from_raw, to_raw

LENGTH = struct.Struct("<Q")
DIGEST_BYTES = 32
Tensors = Sequence[Tensor]


class StoreAway(Exception):
    """The store did not answer in time."""


class ReplyStore(Protocol):
    """Keeps bytes for a while; both methods raise StoreAway, within milliseconds."""

    def get(self, key: str) -> bytes | None:
        """Return what is kept under a key."""
        ...

    def put(self, key: str, value: bytes, max_age_us: int) -> None:
        """Keep a value."""
        ...


class NoStore:
    """Is away for ever: no store is configured."""

    def get(self, key: str) -> bytes | None:  # noqa: ARG002
        raise StoreAway

    def put(self, key: str, value: bytes, max_age_us: int) -> None:  # noqa: ARG002
        raise StoreAway


@dataclass(slots=True)
class CacheCounts:
    """Looks that found a reply or none and how long they took, and what was not kept.

    A look while the store was away is a miss, and counted under `away`, too.
    """

    hits: Total = field(default_factory=Total)
    misses: Total = field(default_factory=Total)
    away: int = 0
    too_large: int = 0


class Responses:
    """The kept replies of one version."""

    def __init__(self, rule: serving.ResponseCache, store: ReplyStore, clock: Clock) -> None:
        self._rule = rule
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._counts = CacheCounts()

    def counts(self) -> CacheCounts:
        """Return the counters as they are now."""
        with self._lock:
            seen = self._counts
            return CacheCounts(seen.hits.copy(), seen.misses.copy(), seen.away, seen.too_large)

    def get(
        self, version: str, digest: str, outputs: Sequence[str], inputs: Tensors
    ) -> tuple[Tensor, ...] | None:
        """Return the outputs that the version gave to these inputs, None when none are kept."""
        began_s, found, is_away = self._clock.monotonic_s(), None, False
        try:
            kept = self._store.get(key_of(version, digest, outputs, inputs))
            found = None if kept is None else unpacked(kept)
        except StoreAway:
            is_away = True
        with self._lock:
            total = self._counts.misses if found is None else self._counts.hits
            total.add(self._clock.monotonic_s() - began_s)
            self._counts.away += is_away
        return found

    def put(
        self, version: str, digest: str, outputs: Sequence[str], inputs: Tensors, given: Tensors
    ) -> None:
        """Keep what the version has answered; never fails a call."""
        value = packed(given)
        if len(value) > self._rule.max_bytes:
            with self._lock:
                self._counts.too_large += 1
            return
        with self._counting():
            self._store.put(key_of(version, digest, outputs, inputs), value, self._rule.max_age)

    @contextmanager
    def _counting(self) -> Iterator[None]:
        try:
            yield
        except StoreAway:
            with self._lock:
                self._counts.away += 1


def key_of(version: str, digest: str, outputs: Sequence[str], inputs: Tensors) -> str:
    """Return the name of a question: version, artifact, outputs asked for, and the typed inputs.

    However a tensor came (raw, typed, JSON), its name, datatype, sizes and bits are the same; each
    part is written with its length, so that no two questions are written alike.
    """
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for tensor in sorted(inputs, key=lambda each: each.name):
        head = json.dumps([tensor.name, tensor.datatype, list(tensor.shape)]).encode()
        for part in (head, to_raw(tensor)):
            state.update(LENGTH.pack(len(part)))
            state.update(part)
    state.update(json.dumps(list(outputs)).encode())
    return f"{version}/{digest}/{state.hexdigest()}"


def packed(tensors: Tensors) -> bytes:
    """Write tensors: the length of a JSON list of their heads, that list, their bytes."""
    raw = [to_raw(each) for each in tensors]
    heads = [
        [each.name, each.datatype, list(each.shape), len(data)]
        for each, data in zip(tensors, raw, strict=True)
    ]
    head = json.dumps(heads, separators=(",", ":")).encode()
    return b"".join((LENGTH.pack(len(head)), head, *raw))


def unpacked(value: bytes) -> tuple[Tensor, ...] | None:
    """Read tensors back; None for what is not whole."""
    try:
        (length,) = LENGTH.unpack_from(value)
        at = LENGTH.size + length
        found: list[Tensor] = []
        for name, datatype, shape, size in json.loads(value[LENGTH.size : at]):
            found.append(from_raw(name, datatype, shape, value[at : at + size], name))
            at += size
    except (struct.error, ValueError, TypeError, InvalidArgument):
        return None
    return tuple(found) if at == len(value) else None
