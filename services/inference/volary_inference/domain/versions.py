"""The versions of this replica: many models, several versions of each, at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol

from volary_kit.errors import FailedPrecondition, NotFound, Unavailable

from volary_inference.domain.batching import Batcher
from volary_inference.domain.guarding import Guard
from volary_inference.domain.instances import Instances
from volary_inference.domain.predictions import ModelKey, VersionKey
from volary_inference.domain.signatures import Signature
from volary_inference.domain.statistics import Snapshot, Statistics, added

RETRY_AFTER_S = 0.1


class State(StrEnum):
    """Where a version is on its way into service."""

    LOADING = "LOADING"
    WARMING = "WARMING"
    READY = "READY"
    DRAINING = "DRAINING"
    FAILED = "FAILED"


class Twin(Protocol):
    """The same version in the native engine, with a queue and counters of its own."""

    def close(self, timeout_s: float) -> bool:
        """Take no more, answer what is queued; say whether all was answered in time."""
        ...

    def snapshot(self) -> Snapshot:
        """Return its counters as they are now."""
        ...


@dataclass(frozen=True)
class Serving:
    """What a loaded version runs with; `twin` is there when the native engine runs it too."""

    signature: Signature
    batcher: Batcher | Instances
    statistics: Statistics
    backend: str
    platform: str
    guard: Guard = field(default_factory=Guard)
    release: Callable[[], None] = lambda: None  # once it runs no more
    twin: Twin | None = None
    instances: int = 1  # batching threads that there are

    def close(self, timeout_s: float) -> bool:
        """Answer what is queued, in every engine; say whether all was answered in time."""
        is_twin_done = self.twin is None or self.twin.close(timeout_s)
        return self.batcher.close(timeout_s) and is_twin_done

    def snapshot(self) -> Snapshot:
        """Return the counters of every engine together."""
        own = self.statistics.snapshot()
        return own if self.twin is None else added(own, self.twin.snapshot())


@dataclass(frozen=True)
class Version:
    """One version on this replica; a change of state is a new object.

    `feature_set` is `name@version`, empty for bare tensors; `precision` is what
    its graph computes in when that is not as trained; `pipeline` is registry's, as JSON.
    """

    key: VersionKey
    digest: str
    state: State = State.LOADING
    serving: Serving | None = None
    feature_set: str = ""
    schema_hash: str = ""
    precision: str = ""
    pipeline: Mapping[str, Any] | None = None  # the steps that its graph was composed of
    error_reason: str = ""
    error: str = ""
    ready_us: int | None = None

    @property
    def is_ready(self) -> bool:
        """True when it answers calls."""
        return self.state is State.READY


@dataclass(frozen=True)
class _Table:
    versions: Mapping[VersionKey, Version] = field(default_factory=dict)
    production: Mapping[ModelKey, int] = field(default_factory=dict)


class Versions:
    """The table of versions. Readers see one consistent table and take no lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._table = _Table()
        self._changed: Callable[[], None] = lambda: None

    def on_change(self, changed: Callable[[], None]) -> None:
        """Call `changed` after every change, in the thread that made it."""
        self._changed = changed

    def put(self, version: Version) -> None:
        """Add a version or replace what is known of it."""
        with self._lock:
            versions = {**self._table.versions, version.key: version}
            self._table = replace(self._table, versions=versions)
        self._changed()

    def remove(self, key: VersionKey) -> None:
        """Forget a version."""
        with self._lock:
            versions = {k: v for k, v in self._table.versions.items() if k != key}
            self._table = replace(self._table, versions=versions)
        self._changed()

    def set_production(self, production: Mapping[ModelKey, int]) -> None:
        """Say which version of each model a call without any gets."""
        with self._lock:
            self._table = replace(self._table, production=dict(production))
        self._changed()

    def all(self) -> list[Version]:
        """Return every version, in order of project, model, number."""
        return [version for _, version in sorted(self._table.versions.items())]

    def find(self, key: VersionKey) -> Version | None:
        """Return what is known of a version, None if it is not here."""
        return self._table.versions.get(key)

    def of_model(self, model: ModelKey) -> list[Version]:
        """Return a model's versions that are ready, by number; raise NotFound if it has none."""
        found = [version for version in self.all() if version.key.of_model == model]
        if not found:
            raise model_not_found(model)
        return [version for version in found if version.is_ready]

    def choose(self, model: ModelKey, number: int | None) -> VersionKey:
        """Return the version that a call gets: the one it names, else production.

        Raises NotFound `MODEL_NOT_FOUND` or `VERSION_NOT_FOUND`, FailedPrecondition
        `NO_PRODUCTION_VERSION`, Unavailable `VERSION_NOT_READY`.
        """
        table = self._table
        if number is None:
            number = self._require_production(table, model)
        version = table.versions.get(model.version(number))
        if version is None:
            if not any(key.of_model == model for key in table.versions):
                raise model_not_found(model)
            raise version_not_found(model, number)
        require_ready(version)
        return version.key

    def ready(self, key: VersionKey) -> tuple[Version, Serving]:
        """Return a version that answers calls, with what it runs with; errors as in `choose`."""
        version = self._table.versions.get(key)
        if version is None:
            raise version_not_found(key.of_model, key.version)
        return version, require_ready(version)

    def production_of(self, model: ModelKey) -> int | None:
        """Return the number of a model's production version, None when it has none."""
        return self._table.production.get(model)

    def production(self) -> Mapping[ModelKey, int]:
        """Return the production version of every model that has one."""
        return self._table.production

    def _require_production(self, table: _Table, model: ModelKey) -> int:
        number = table.production.get(model)
        if number is not None:
            return number
        if not any(key.of_model == model for key in table.versions):
            raise model_not_found(model)
        raise FailedPrecondition(
            "NO_PRODUCTION_VERSION",
            f"{model.model} has no version in production; name one",
            {"model": model.model},
        )


def require_ready(version: Version) -> Serving:
    """Return what a version runs with; raise Unavailable unless it answers calls."""
    if version.serving is None or not version.is_ready:
        raise Unavailable(
            "VERSION_NOT_READY",
            f"version {version.key.version} is {version.state.value} here",
            {"model": version.key.model, "version": str(version.key.version)},
            retry_after_s=RETRY_AFTER_S,
        )
    return version.serving


def model_not_found(model: ModelKey) -> NotFound:
    """Return the error of a model that this replica does not serve."""
    return NotFound("MODEL_NOT_FOUND", "the model does not exist", {"model": model.model})


def version_not_found(model: ModelKey, number: int) -> NotFound:
    """Return the error of a version that this replica does not hold."""
    return NotFound(
        "VERSION_NOT_FOUND",
        "the version is not loaded",
        {"model": model.model, "version": str(number)},
    )
