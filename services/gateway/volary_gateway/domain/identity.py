"""Who may call: projects, principals and their keys."""

from __future__ import annotations

from dataclasses import dataclass

from volary_kit.errors import PermissionDenied

LAUNCHER = "services/launcher"
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


def require_may_issue(subject: str) -> None:
    """Raise PermissionDenied for a service other than the launcher, which makes the first key."""
    if subject.startswith("services/") and subject != LAUNCHER:
        raise PermissionDenied("ROLE_MISSING", f"{subject} may not issue API keys")
