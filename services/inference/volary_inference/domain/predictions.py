"""What goes into the engine and what comes out: requests, replies, provenance."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from volary_kit.errors import VolaryError
from volary_kit.waiting import about_to_wait

from volary_inference.domain.batching import NORMAL
from volary_inference.domain.decisions import Decision
from volary_inference.domain.tensors import Tensor


class ModelKey(NamedTuple):
    """A model of a project."""

    project: str
    model: str

    def version(self, number: int) -> VersionKey:
        """Return the key of one of its versions."""
        return VersionKey(self.project, self.model, number)


class VersionKey(NamedTuple):
    """One version of a model."""

    project: str
    model: str
    version: int

    @property
    def of_model(self) -> ModelKey:
        """The model that it is a version of."""
        return ModelKey(self.project, self.model)

    @property
    def name(self) -> str:
        """`projects/{project}/models/{model}/versions/{version}`."""
        return f"projects/{self.project}/models/{self.model}/versions/{self.version}"


class Cancellation:
    """Tells the engine that the caller went away; set once, from any thread."""

    __slots__ = ("_callbacks", "_is_set", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_set = False
        self._callbacks: list[Callable[[], None]] = []

    @property
    def is_set(self) -> bool:
        """True once the caller is gone."""
        return self._is_set

    def cancel(self) -> None:
        """Say that nobody waits any more."""
        with self._lock:
            self._is_set = True
            callbacks = list(self._callbacks)
        for callback in callbacks:
            callback()

    @contextmanager
    def telling(self, callback: Callable[[], None]) -> Iterator[None]:
        """Call back on a cancellation within the block, at once if it has happened."""
        with self._lock:
            self._callbacks.append(callback)
        if self._is_set:
            callback()
        try:
            yield
        finally:
            with self._lock:
                self._callbacks.remove(callback)

    def wait(self, timeout_s: float) -> bool:
        """Wait for a cancellation; say whether it came."""
        happened = threading.Event()
        about_to_wait()
        with self.telling(happened.set):
            return happened.wait(timeout_s)


# not frozen, these: one of each is made a call, and frozen ones cost twice as much to make
@dataclass(slots=True)
class Origin:
    """How a call came: what reply and event tell of it."""

    request_key: str
    attempt: int = 1
    route: str = ""
    is_shadow: bool = False
    trace_id: str = ""
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class About:
    """What a prediction is about; `event_time_us` None means now.

    `features` is the input vector in feature set order, in double precision.
    """

    subject: str = ""
    event_time_us: int | None = None
    entity_keys: Mapping[str, str] = field(default_factory=dict)
    features: tuple[float, ...] = ()
    feature_set: str = ""
    schema_hash: str = ""
    feature_watermark_us: int | None = None


@dataclass(slots=True)
class InferRequest:
    """One call to one version; `outputs` empty asks for all.

    `refusal` is why the model cannot answer, where that is known before: a lower tier may.
    `priority` is 1 for what goes before others, 3 for what goes behind them.
    """

    key: VersionKey
    inputs: tuple[Tensor, ...]
    origin: Origin
    outputs: tuple[str, ...] = ()
    about: About = field(default_factory=About)
    cancellation: Cancellation = field(default_factory=Cancellation)
    refusal: VolaryError | None = None
    priority: int = NORMAL


@dataclass(slots=True)
class Provenance:
    """Where a reply came from; `confidence` None where the model states none.

    `decision` is None where the version declares no bands.
    """

    key: VersionKey
    digest: str
    tier: str
    route: str
    prediction_id: str
    queue_us: int
    batch_size: int
    backend: str
    confidence: float | None
    is_calibrated: bool = False
    is_cached: bool = False  # the version's own reply to the same input, a while ago
    decision: Decision | None = None
    precision: str = ""  # of a variant in other numbers than it was trained in


@dataclass(slots=True)
class InferReply:
    """The outputs asked for, and where they came from."""

    outputs: tuple[Tensor, ...]
    provenance: Provenance
    load: str = ""  # of the version here, as Envoy reads it


def prediction_id(origin: Origin, version: int) -> str:
    """Return `{request_key}.{version}.{attempt}`."""
    return f"{origin.request_key}.{version}.{origin.attempt}"
