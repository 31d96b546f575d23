"""What the launcher reads from the environment; nothing else of the command line does."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from volary_cli.launcher.errors import ConfigurationError
from volary_cli.launcher.scaling import ScalingPolicy

MAVEN_CENTRAL = "https://repo.maven.apache.org/maven2"
PORT_BASE = 7700
LAST_PORT = 65_535
MILLIS = 1_000  # microseconds
SPAN = 100  # ports that a mesh may use from its base on
POSTGRES_SCHEMES = ("postgresql://", "postgres://")
REDIS_SCHEMES = ("redis://", "rediss://")


class LauncherSettings(BaseSettings):
    """Engines that exist already, and where a mesh lives."""

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True, populate_by_name=True)

    postgres_url: str | None = Field(None, validation_alias="VOLARY_POSTGRES_URL")
    redis_url: str | None = Field(None, validation_alias="VOLARY_REDIS_URL")
    temporal_address: str | None = Field(None, validation_alias="VOLARY_TEMPORAL_ADDRESS")
    otlp_endpoint: str | None = Field(None, validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT")
    data_dir: Path | None = Field(None, validation_alias="VOLARY_DATA_DIR")
    data_home: Path = Field(Path("~/.local/share"), validation_alias="XDG_DATA_HOME")
    cache_home: Path = Field(Path("~/.cache"), validation_alias="XDG_CACHE_HOME")
    port_base: int = Field(
        PORT_BASE, ge=1_024, le=LAST_PORT - SPAN, validation_alias="VOLARY_PORT_BASE"
    )
    # a replica joins when calls have waited longer than this many ms for so many s, and leaves when
    # they have waited less; `volary up --max-replicas` turns that on
    scale_high_ms: float = Field(10, gt=0, validation_alias="VOLARY_SCALE_HIGH_MS")
    scale_low_ms: float = Field(2, ge=0, validation_alias="VOLARY_SCALE_LOW_MS")
    scale_rise_s: float = Field(3, ge=0, validation_alias="VOLARY_SCALE_RISE_S")
    scale_fall_s: float = Field(60, ge=0, validation_alias="VOLARY_SCALE_FALL_S")
    maven_url: str = Field(MAVEN_CENTRAL, validation_alias="VOLARY_MAVEN_URL")

    @field_validator("postgres_url")
    @classmethod
    def _is_postgres(cls, url: str | None) -> str | None:
        return _with_scheme(url, POSTGRES_SCHEMES)

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, url: str | None) -> str | None:
        return _with_scheme(url, REDIS_SCHEMES)

    @field_validator("temporal_address")
    @classmethod
    def _is_address(cls, address: str | None) -> str | None:
        if address is not None and not address.rpartition(":")[2].isdigit():
            raise ValueError("must be host:port")
        return address

    @classmethod
    def read(cls) -> LauncherSettings:
        """Read the environment; raise ConfigurationError that names each broken key."""
        try:
            return cls()  # pyright: ignore[reportCallIssue] - the environment fills it
        except ValidationError as error:
            problems = "; ".join(f"{row['loc'][0]}: {row['msg']}" for row in error.errors())
            raise ConfigurationError(problems) from None

    def mesh_folder(self, given: Path | None = None) -> Path:
        """Return the data folder: the option, else the key, else a per-user one."""
        return absolute(given or self.data_dir or self.data_home / "volary")

    def scaling(self, minimum: int, maximum: int) -> ScalingPolicy:
        """Return between which numbers replicas come and go, and by which waits."""
        if self.scale_low_ms >= self.scale_high_ms:
            raise ConfigurationError("VOLARY_SCALE_LOW_MS must be below VOLARY_SCALE_HIGH_MS")
        return ScalingPolicy(
            minimum,
            maximum,
            high_us=round(self.scale_high_ms * MILLIS),
            low_us=round(self.scale_low_ms * MILLIS),
            rise_s=self.scale_rise_s,
            fall_s=self.scale_fall_s,
        )

    @property
    def cache(self) -> Path:
        """Where downloaded binaries are kept, shared by every mesh of the user."""
        return absolute(self.cache_home / "volary")


def absolute(path: Path) -> Path:
    """Return a path that means the same in every process."""
    return Path(os.path.abspath(path.expanduser()))  # noqa: PTH100 - keeps symbolic links


def _with_scheme(url: str | None, schemes: tuple[str, ...]) -> str | None:
    if url is not None and not url.startswith(schemes):
        raise ValueError(f"must begin with {' or '.join(schemes)}")
    return url
