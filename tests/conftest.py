"""Real engines for tests: one of each per session, started when a test first asks for it.

A test gets a fresh database, migrated from a template that is made once per package, and an
empty Redis. Nothing here stands in for an engine.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest
from redis.asyncio import Redis
from temporalio.client import Client
from volary_cli.launcher.engines import (
    PostgresEngine,
    RedisEngine,
    TemporalEngine,
    free_port,
    running,
)
from volary_kit.database import Database
from volary_kit.migrations import migrate, migrations_of

# the rigs start processes while calls run: grpc's handlers of fork would abort the child
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
PASSWORD = "test"
# a crash of the machine in mid-test loses nothing that anybody wants
FAST = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}

MakeDatabase = Callable[[str], Awaitable[Database]]


@pytest.fixture(scope="session")
def engines_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="session")
async def postgres(engines_folder: Path) -> AsyncIterator[PostgresEngine]:
    folder = engines_folder / "postgres"
    engine = PostgresEngine(folder, free_port(), PASSWORD, FAST)
    async with running(engine, engines_folder / "postgres.log"):
        yield engine


@pytest.fixture(scope="session")
async def redis_url(engines_folder: Path) -> AsyncIterator[str]:
    engine = RedisEngine(engines_folder / "redis", free_port(), PASSWORD)
    async with running(engine, engines_folder / "redis.log"):
        yield engine.url


@pytest.fixture(scope="session")
async def temporal_address(engines_folder: Path) -> AsyncIterator[str]:
    ports = free_port(), free_port(), free_port()
    engine = TemporalEngine(engines_folder / "temporal", *ports, cache=engines_folder)
    async with running(engine, engines_folder / "temporal.log"):
        yield engine.address


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """An empty Redis."""
    client = Redis.from_url(redis_url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture(scope="session")
async def temporal(temporal_address: str) -> Client:
    return await Client.connect(temporal_address)


class Databases:
    """Fresh databases of one server, each a copy of a migrated template."""

    def __init__(self, postgres: PostgresEngine) -> None:
        self._postgres = postgres
        self._templates: set[str] = set()
        self._count = 0

    async def fresh(self, service: str) -> str:
        """Return the URL of a new database whose schema `service` is migrated."""
        template = f"template_{service}"
        if template not in self._templates:
            await self._admin(f'CREATE DATABASE "{template}"')
            folder = None if service == "kit" else migrations_of(f"volary_{service}")
            await migrate(self._postgres.url(database=template), service, folder)
            self._templates.add(template)
        self._count += 1
        name = f"{service}_{self._count}"
        await self._admin(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self._postgres.url(database=name)

    async def drop(self, url: str) -> None:
        """Drop a database, with whoever is still connected."""
        name = url.rpartition("/")[2]
        await self._admin(f'DROP DATABASE "{name}" WITH (FORCE)')

    async def _admin(self, statement: str) -> None:
        connection = await asyncpg.connect(self._postgres.url())
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


@pytest.fixture(scope="session")
def databases(postgres: PostgresEngine) -> Databases:
    return Databases(postgres)


@pytest.fixture
async def make_database(databases: Databases) -> AsyncIterator[MakeDatabase]:
    """`await make_database("registry")` is a `Database` on a fresh, migrated schema."""
    made: list[Database] = []

    async def make(service: str) -> Database:
        made.append(Database(await databases.fresh(service), service))
        return made[-1]

    yield make
    for database in made:
        await database.close()
        await databases.drop(database.url)


@pytest.fixture
async def database(make_database: MakeDatabase) -> Database:
    """A database with the tables of the kit alone, in schema `kit`."""
    return await make_database("kit")
