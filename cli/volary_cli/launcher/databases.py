"""One role and one schema of PostgreSQL for each service."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg

from volary_cli.launcher.errors import EngineError
from volary_cli.launcher.folder import MeshFolder
from volary_cli.launcher.settings import LauncherSettings

DATABASE = "volary"
TRACES = "traces"
CONNECT_S = 5


class Databases:
    """The database of a mesh on a server that `admin_url` administers.

    On an embedded server the database is called `volary`; on one that exists already it is the
    one that the URL names.
    """

    def __init__(self, admin_url: str, passwords: Mapping[str, str], *, is_embedded: bool) -> None:
        self._server_url = admin_url
        self._is_embedded = is_embedded
        self._passwords = passwords

    @property
    def _admin_url(self) -> str:
        if not self._is_embedded:
            return self._server_url
        return urlunsplit(urlsplit(self._server_url)._replace(path=f"/{DATABASE}"))

    def url(self, service: str) -> str:
        """Return the URL by which a service reaches its schema, and no other."""
        parts = urlsplit(self._admin_url)
        host = parts.netloc.rpartition("@")[2]
        secret = quote(self._passwords[service], safe="")
        return urlunsplit(parts._replace(netloc=f"{_role(service)}:{secret}@{host}"))

    async def provision(self) -> None:
        """Make what is missing and set every password; costs little when all is there."""
        try:
            if self._is_embedded:
                await self._create_database()
            connection = await asyncpg.connect(self._admin_url, timeout=CONNECT_S)
            try:
                await self._create_roles(connection)
            finally:
                await connection.close()
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise EngineError(
                f"cannot make roles and schemas at {_shown(self._admin_url)}: {error}"
            ) from error

    async def _create_database(self) -> None:
        connection = await asyncpg.connect(self._server_url, timeout=CONNECT_S)
        try:
            found = await connection.fetchval(
                "SELECT true FROM pg_database WHERE datname = $1", DATABASE
            )
            if not found:
                await connection.execute(f'CREATE DATABASE "{DATABASE}"')
        finally:
            await connection.close()

    async def _create_roles(self, connection: asyncpg.Connection) -> None:
        database = await connection.fetchval("SELECT current_database()")
        for service, password in self._passwords.items():
            role = _role(service)
            await connection.execute(_CREATE_ROLE.format(role=role))
            # DDL takes no parameters; a password is letters and digits of our own
            await connection.execute(f"""ALTER ROLE "{role}" LOGIN PASSWORD '{password}'""")
            await connection.execute(f'GRANT "{role}" TO CURRENT_USER')
            await connection.execute(f'GRANT CONNECT, CREATE ON DATABASE "{database}" TO "{role}"')
            await connection.execute(
                f'CREATE SCHEMA IF NOT EXISTS "{service}" AUTHORIZATION "{role}"'
            )


_CREATE_ROLE = """
DO $$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN CREATE ROLE "{role}"; END IF;
END $$
"""


def _role(service: str) -> str:
    return f"volary_{service}"


def _shown(url: str) -> str:
    """Return a URL without its credential."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def trace_store_url(folder: MeshFolder, settings: LauncherSettings) -> str | None:
    """Return where the traces of a mesh are kept, None when it never ran."""
    password = folder.known_secret(f"postgres.{TRACES}")
    state = folder.read_state()
    if password is None or state is None:
        return None
    server = state["status"]["postgres"]
    admin = settings.postgres_url or f"postgresql://volary@{server}/postgres"
    databases = Databases(admin, {TRACES: password}, is_embedded=settings.postgres_url is None)
    return databases.url(TRACES)
