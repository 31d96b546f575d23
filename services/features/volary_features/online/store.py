"""The online store: packed entities and watermarks on Redis, read in one round trip."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError
from volary_kit.errors import Unavailable

from volary_features.online.layout import WATERMARKS, ViewKey

RETRY_AFTER_S = 0.2
COMMIT = resources.files(__package__ or "").joinpath("commit.lua").read_text(encoding="utf-8")
PAGE = 1_000


@dataclass(frozen=True)
class Held:
    """What is held of one view: its watermark (None: not loaded) and packed entities."""

    watermark_us: int | None
    entities: Sequence[bytes]


@dataclass(frozen=True)
class Change:
    """New bytes of an entity in place of those that were read; empty bytes delete it."""

    key: str
    before: bytes
    after: bytes
    last_us: int


@dataclass(frozen=True)
class Commit:
    """Changes of one view that happen together.

    `watermark_us` only moves forward; `creates` says that the view is loaded from now on.
    Entities whose last instant is before `expired_us` go.
    """

    view: ViewKey
    changes: Sequence[Change] = ()
    watermark_us: int | None = None
    creates: bool = False
    expired_us: int | None = None

    def keys(self) -> list[str]:
        """The keys of the script."""
        entities = (self.view.entity(change.key) for change in self.changes)
        return [self.view.meta, self.view.index, *entities]

    def arguments(self) -> list[Any]:
        """The arguments of the script."""
        found: list[Any] = [
            "" if self.watermark_us is None else self.watermark_us,
            "1" if self.creates else "",
            "" if self.expired_us is None else self.expired_us,
            WATERMARKS,
            self.view.prefix,
        ]
        for change in self.changes:
            digest = hashlib.sha1(change.before, usedforsecurity=False).hexdigest()
            found += [digest if change.before else "", change.after, change.last_us, change.key]
        return found


class OnlineStore:
    """Reads and changes what Redis holds; raises Unavailable `ONLINE_STORE_UNAVAILABLE`."""

    def __init__(self, redis: Redis, *, timeout_s: float) -> None:
        self._redis = redis
        self._timeout_s = timeout_s
        self._script = redis.register_script(COMMIT)

    async def read(self, wanted: Sequence[tuple[ViewKey, Sequence[str]]]) -> list[Held]:
        """Return watermark and entities of each view, of one moment, in one round trip.

        An entity that is not there is empty bytes.
        """
        names = [(view.meta, [view.entity(key) for key in keys]) for view, keys in wanted]
        # rows of one batch share entities: each is fetched once
        once = list(dict.fromkeys(name for meta, rows in names for name in (meta, *rows)))
        if not once:
            return []
        values = await self._bounded(self._redis.mget(once))
        found = dict(zip(once, values, strict=True))
        return [
            Held(
                None if found[meta] is None else int(found[meta]),
                [found[name] or b"" for name in rows],
            )
            for meta, rows in names
        ]

    async def commit(self, commits: Sequence[Commit]) -> list[bool]:
        """Make each commit at once; False for one where another writer was faster."""
        pipeline = self._redis.pipeline(transaction=False)
        for each in commits:
            await self._script(keys=each.keys(), args=each.arguments(), client=pipeline)
        return [bool(done) for done in await self._bounded(pipeline.execute())]

    async def members(self, view: ViewKey) -> AsyncIterator[list[str]]:
        """Yield the keys of all entities of a view, in pages."""
        start = 0
        while True:
            ranged = self._redis.zrange(view.index, start, start + PAGE - 1)
            found = await self._bounded(cast("Awaitable[list[bytes]]", ranged))
            if found:
                yield [member.decode() for member in found]
            if len(found) < PAGE:
                return
            start += PAGE

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[AsyncIterator[str]]:
        """Give the prefixes of views whose watermark moves, as they move."""
        pubsub = self._redis.pubsub(ignore_subscribe_messages=True)
        await pubsub.subscribe(WATERMARKS)

        async def moved() -> AsyncIterator[str]:
            async for message in pubsub.listen():
                yield message["data"].decode()

        try:
            yield moved()
        finally:
            await pubsub.aclose()

    async def _bounded(self, answer: Awaitable[Any]) -> Any:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await answer
        except (RedisError, OSError, TimeoutError) as error:
            raise Unavailable(
                "ONLINE_STORE_UNAVAILABLE",
                "the online store does not answer",
                retry_after_s=RETRY_AFTER_S,
            ) from error
