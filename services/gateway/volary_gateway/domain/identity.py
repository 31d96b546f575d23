"""Who may call: projects, principals and their keys."""

from __future__ import annotations

from dataclasses import dataclass

DAY_US = 86_400 * 1_000_000
DEFAULT_LIFE_US = 90 * DAY_US


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as it is kept: never the token, only its hash."""

    id: str
    project: str
    principal: str
    roles: tuple[str, ...]
    token_hash: bytes
    created_us: int
    expires_us: int
    revoked_us: int | None = None


@dataclass(frozen=True, slots=True)
class Project:
    """A tenant."""

    id: str
    display_name: str
    created_us: int
