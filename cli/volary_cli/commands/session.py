"""Who a command talks to: the mesh of this machine, or the one that the environment names."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from volary_cli.commands.exits import CommandError, Exit
from volary_cli.commands.mesh import folder_of, read_status

if TYPE_CHECKING:
    from temporalio.client import Client
    from volary_client import AsyncClient

Answer = TypeVar("Answer")


class RemoteMesh(BaseSettings):
    """A mesh elsewhere: its client address, an API key, its Temporal; all or nothing of ours."""

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True)

    address: str | None = Field(None, validation_alias="VOLARY_ADDRESS")
    api_key: str | None = Field(None, validation_alias="VOLARY_API_KEY")
    temporal: str | None = Field(None, validation_alias="VOLARY_TEMPORAL_ADDRESS")
    project: str = Field("default", validation_alias="VOLARY_PROJECT")


class Session:
    """Opens clients of one mesh."""

    def __init__(self, data_dir: Path | None = None) -> None:
        self._remote = RemoteMesh()  # pyright: ignore[reportCallIssue] - the environment fills it
        self.project = self._remote.project
        self._status = {} if self._remote.address else _local(data_dir)

    @property
    def address(self) -> str:
        """The client address, as host:port."""
        return self._remote.address or self._status["gateway"]

    @property
    def api_key(self) -> str | None:
        """The API key, None where the mesh needs none."""
        return self._remote.api_key or self._status.get("api_key")

    @property
    def principal(self) -> str:
        """Whose API key this is, by the key's own word: a name for the record."""
        import jwt

        try:
            claims = jwt.decode(self.api_key or "", options={"verify_signature": False})
        except jwt.PyJWTError:
            return ""
        return str(claims.get("sub", ""))

    def client(self) -> AsyncClient:
        """Return a client of every service."""
        from volary_client import AsyncClient

        return AsyncClient(self.address, self.api_key, project=self.project)

    async def temporal(self) -> Client:
        """Return a client of Temporal."""
        from temporalio.client import Client

        address = self._remote.temporal or self._status.get("temporal")
        if address is None:
            raise CommandError("set VOLARY_TEMPORAL_ADDRESS beside VOLARY_ADDRESS")
        try:
            return await Client.connect(address)
        except RuntimeError as error:
            raise CommandError(f"Temporal at {address} does not answer", Exit.NO_MESH) from error

    def ask(self, question: Callable[[AsyncClient], Awaitable[Answer]]) -> Answer:
        """Run one question against the mesh."""

        async def asked() -> Answer:
            async with self.client() as client:
                return await question(client)

        return asyncio.run(asked())


def _local(data_dir: Path | None) -> dict[str, Any]:
    folder = folder_of(data_dir)
    if folder.holder() is None:
        raise CommandError(
            f"no mesh runs in {folder.root}: `volary up --detach` starts one, VOLARY_ADDRESS "
            "names another",
            Exit.NO_MESH,
        )
    return read_status(folder)
