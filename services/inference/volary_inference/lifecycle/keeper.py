"""Brings the loaded versions to the desired set, one task a version."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from volary_kit.clock import Clock
from volary_kit.errors import (
    Aborted,
    DeadlineExceeded,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    VolaryError,
)

from volary_inference.domain.predictions import ModelKey, VersionKey
from volary_inference.domain.versions import Serving, State, Version, Versions
from volary_inference.lifecycle.desired import Desired
from volary_inference.lifecycle.loading import Loader
from volary_inference.lifecycle.package import Package
from volary_inference.lifecycle.packages import PackageSource
from volary_inference.lifecycle.trial import Trials
from volary_inference.lifecycle.verdicts import Verdict

log = logging.getLogger(__name__)
# another attempt may go better; everything else is the version's own fault
PASSING = (
    Unavailable,
    DeadlineExceeded,
    Aborted,
    ResourceExhausted,
    Unauthenticated,
    OSError,  # a full disk may be emptied
)
Work = Callable[[], Coroutine[Any, Any, None]]
RETRY_S = (0.2, 5.0)
FETCHES = 4  # at once: the next ones come while one is loaded
DRAIN_S = 30.0  # a batch that takes longer than this is stuck


class Keeper:
    """Loads what is wanted, drains what is not."""

    def __init__(
        self,
        versions: Versions,
        packages: PackageSource,
        loader: Loader,
        trials: Trials,
        clock: Clock,
    ) -> None:
        self._versions = versions
        self._packages = packages
        self._loader = loader
        self._trials = trials
        self._clock = clock
        self._changed: Callable[[], None] = lambda: None
        self._desired: Desired | None = None
        self._tasks: dict[VersionKey, asyncio.Task[None]] = {}
        self._loading = asyncio.Semaphore(1)  # one load at a time leaves a core to the calls
        # what is fetched is in memory until it is loaded
        self._fetching = asyncio.Semaphore(FETCHES)
        self._waking: set[asyncio.Task[None]] = set()
        self._was_warm = False

    def on_change(self, changed: Callable[[], None]) -> None:
        """Call `changed` after every step of a version."""
        self._changed = changed

    @property
    def revision(self) -> int:
        """Revision of the desired set that is worked on; 0 before the first."""
        return 0 if self._desired is None else self._desired.revision

    async def is_warm(self) -> bool:
        """Say whether every version of the first desired set is ready or refused.

        Once true it stays true: a version that loads later takes no call away from the others.
        """
        if not self._was_warm and self._desired is not None:
            states = [self._versions.find(key) for key in self._desired.digests]
            self._was_warm = all(
                version is not None and version.state in (State.READY, State.FAILED)
                for version in states
            )
        return self._was_warm

    def want(self, desired: Desired) -> None:
        """Take a new desired set; returns at once, the work goes on in tasks."""
        self._desired = desired
        digests = desired.digests
        for version in self._versions.all():
            if digests.get(version.key) != version.digest:
                self._begin(version.key, partial(self._unload, version.key))
        for key, digest in digests.items():
            if self._versions.find(key) is None:
                self._versions.put(Version(key, digest))
                self._begin(key, partial(self._load, key, digest))
        before = self._versions.production()
        self._versions.set_production(desired.production)
        self._wake_later(before, desired.production)
        self._changed()

    def _wake_later(
        self, before: Mapping[ModelKey, int], production: Mapping[ModelKey, int]
    ) -> None:
        """Read what is in production from now on: it is pinned, and its calls do not wait."""
        rows = production.items() - before.items()
        keys = [model.version(number) for model, number in rows]
        asleep = [key for key in keys if self._loader.is_wanted_awake(key)]
        if not asleep:
            return
        task = asyncio.create_task(self._wake(asleep))
        self._waking.add(task)
        task.add_done_callback(self._waking.discard)

    async def resume(self, model: ModelKey) -> None:
        """Load again what of a model is desired and FAILED; return when none is on its way."""
        digests = {} if self._desired is None else self._desired.digests
        for key, digest in digests.items():
            version = self._versions.find(key)
            if key.of_model == model and version is not None and version.state is State.FAILED:
                self._trials.forgive(digest)
                self._put(Version(key, digest))
                self._begin(key, partial(self._load, key, digest))
        await self._settled(model)

    async def hold(self, model: ModelKey) -> None:
        """Take a model's versions out of service until `resume`; return when they are."""
        for version in self._versions.all():
            if version.key.of_model == model:
                self._begin(version.key, partial(self._hold, version.key))
        await self._settled(model)

    async def _settled(self, model: ModelKey) -> None:
        tasks = [task for key, task in self._tasks.items() if key.of_model == model]
        await asyncio.gather(*(asyncio.shield(task) for task in tasks), return_exceptions=True)

    async def _hold(self, key: VersionKey) -> None:
        version = await self._drained(key)
        if version is not None:
            text = "an operator unloaded it on this replica"
            self._refuse(Version(key, version.digest), "UNLOADED", text)

    async def close(self) -> None:
        """Stop loading, answer what is queued."""
        tasks = [*self._tasks.values(), *self._waking]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._trials.close()
        servings = [v.serving for v in self._versions.all() if v.serving is not None]
        await asyncio.gather(*(asyncio.to_thread(s.close, DRAIN_S) for s in servings))

    def _begin(self, key: VersionKey, work: Work) -> None:
        """Start the one task of a version in place of the one before."""
        before = self._tasks.pop(key, None)
        task = asyncio.create_task(self._after(before, work))
        self._tasks[key] = task
        task.add_done_callback(lambda done: self._ended(key, done))

    async def _after(self, before: asyncio.Task[None] | None, work: Work) -> None:
        if before is not None:
            before.cancel()
            await asyncio.gather(before, return_exceptions=True)
        await work()

    def _ended(self, key: VersionKey, task: asyncio.Task[None]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]
        if task.cancelled() or task.exception() is None:
            return
        log.error("%s cannot be loaded", key.name, exc_info=task.exception())
        version = self._versions.find(key)
        if version is not None:
            self._refuse(version, "INTERNAL", "loading failed; the log has the cause")

    def _refuse(self, version: Version, reason: str, text: str) -> None:
        self._put(replace(version, state=State.FAILED, error_reason=reason, error=text))

    def _put(self, version: Version) -> None:
        self._versions.put(version)
        self._changed()

    async def _load(self, key: VersionKey, digest: str) -> None:
        wait_s, longest_s = RETRY_S
        while True:
            try:
                await self._load_once(key, digest)
            except PASSING as error:
                log.warning("%s waits: %s", key.name, error)
                await asyncio.sleep(wait_s)
                wait_s = min(longest_s, wait_s * 2)
            except VolaryError as error:
                log.warning("%s is refused: %s", key.name, error)
                self._refuse(Version(key, digest), error.reason, error.message)
                return
            else:
                return

    async def _load_once(self, key: VersionKey, digest: str) -> None:
        async with self._fetching:
            await self._serve_fetched(key, digest)

    async def _serve_fetched(self, key: VersionKey, digest: str) -> None:
        package = await self._packages.fetch(key, digest)
        description = package.description
        version = Version(
            key,
            digest,
            feature_set=description.feature_set,
            schema_hash=description.schema_hash,
            precision=description.precision,
            pipeline=description.pipeline,
        )
        async with self._loading:
            verdict = await self._trials.require(package)
            if self._loader.may_sleep(key, package):
                serving = await self._asleep(key, package, verdict)
            else:
                serving = await self._awake(version, package)
        ready = replace(version, state=State.READY, serving=serving, ready_us=self._clock.now_us())
        self._put(ready)
        log.info("%s is ready", key.name)

    async def _awake(self, version: Version, package: Package) -> Serving:
        with self._loader.noted(version.digest) as slot:
            graph = await asyncio.to_thread(self._loader.open, package)
            self._put(replace(version, state=State.WARMING))
            run_times = await asyncio.to_thread(self._loader.warm, graph, package)
            guard = await asyncio.to_thread(self._loader.guard, graph.signature, package)
        return self._loader.serve(version.key, graph, run_times, guard, slot, package.reading)

    async def _asleep(self, key: VersionKey, package: Package, verdict: Verdict) -> Serving:
        """Start without the graph: its trial went well, and there is no room for it now."""
        guard = await asyncio.to_thread(self._loader.guard, verdict.signature, package)
        with self._loader.noted(package.description.digest) as slot:
            return self._loader.asleep(key, verdict, package, guard, slot)

    async def _wake(self, keys: list[VersionKey]) -> None:
        for key in keys:
            async with self._loading:
                await asyncio.to_thread(self._loader.wake, key)

    async def _drained(self, key: VersionKey) -> Version | None:
        version = self._versions.find(key)
        if version is not None and version.serving is not None:
            self._put(replace(version, state=State.DRAINING))
            if await asyncio.to_thread(version.serving.close, DRAIN_S):
                version.serving.release()
        return version

    async def _unload(self, key: VersionKey) -> None:
        await self._drained(key)
        self._versions.remove(key)
        self._changed()
        if self._desired is not None and key in self._desired.digests:
            digest = self._desired.digests[key]
            self._put(Version(key, digest))
            await self._load(key, digest)
