"""Settings of a service, read once from `VOLARY_<SERVICE>_...`, frozen, printed without secrets."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

PASSWORD = re.compile(r"(?<=://)([^:/@\s]*):([^@\s]*)@")


class SettingsError(Exception):
    """A key is unknown, missing or broken; the text names each one and never its value."""


class ServiceSettings(BaseSettings):
    """What every service reads; a subclass names its service and adds its own keys.

        class RegistrySettings(ServiceSettings, service="registry"):
            max_artifact_bytes: int = 1 << 30

    A service declares the address of each peer that it may call as `<peer>_address`.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_ignore_empty=True)
    service: ClassVar[str] = ""

    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65_535)
    metrics_port: int = Field(default=0, ge=0, le=65_535)
    database_url: str | None = None
    redis_url: str | None = None
    temporal_address: str | None = None
    temporal_namespace: str = "default"
    otlp_endpoint: str | None = None
    jwks_file: Path | None = None
    revocations_file: Path | None = None
    service_key_file: Path | None = None
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    tls_client_ca_file: Path | None = None
    peer_ca_file: Path | None = None  # set it and calls to peers go over TLS
    data_dir: Path = Path(".volary")
    drain_delay_s: float = Field(default=0.5, ge=0, le=300)
    grace_s: float = Field(default=10.0, ge=0, le=600)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    instance: str = "0"

    def __init_subclass__(cls, service: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)

    @classmethod
    def __pydantic_init_subclass__(cls, service: str | None = None, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if service is not None:
            cls.service = service
            cls.model_config["env_prefix"] = prefix_of(service)

    @classmethod
    def read(cls, **overrides: Any) -> Self:
        """Read the environment; raise SettingsError that names every unknown or broken key."""
        problems = [f"{key} is not a setting of {cls.service}" for key in cls._unknown_keys()]
        try:
            settings = cls(**overrides)
        except ValidationError as error:
            problems += [cls._problem(row["loc"], row["msg"]) for row in error.errors()]
            raise SettingsError("; ".join(problems)) from None
        if problems:
            raise SettingsError("; ".join(problems))
        return settings

    @classmethod
    def _unknown_keys(cls) -> list[str]:
        prefix = prefix_of(cls.service)
        known = {prefix + name.upper() for name in cls.model_fields}
        return sorted(
            key for key in os.environ if key.upper().startswith(prefix) and key.upper() not in known
        )

    @classmethod
    def _problem(cls, location: tuple[int | str, ...], text: str) -> str:
        key = prefix_of(cls.service) + str(location[0]).upper() if location else cls.service
        return f"{key}: {text}"

    def masked(self) -> dict[str, Any]:
        """Return every setting, with passwords in URLs and secret values replaced."""
        return {name: _masked(value) for name, value in self.model_dump(mode="python").items()}

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.masked().items())
        return f"{type(self).__name__}({shown})"

    __str__ = __repr__


def prefix_of(service: str) -> str:
    """Return the prefix of a service's environment variables."""
    return f"VOLARY_{service.upper()}_"


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return PASSWORD.sub(r"\1:***@", value)
    return str(value) if isinstance(value, Path) else value
