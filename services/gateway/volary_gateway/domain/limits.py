"""How many calls the edge lets through."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

EVERY_PRINCIPAL = "-"  # each holder of keys that has no limit of its own


class LimitKind(StrEnum):
    """Whose calls a limit counts."""

    MODEL = "model"
    PRINCIPAL = "principal"


@dataclass(frozen=True, order=True, slots=True)
class LimitName:
    """A limit of a project: one model's, one principal's, or each principal's."""

    project: str
    kind: LimitKind
    subject: str

    def __str__(self) -> str:
        return f"projects/{self.project}/{self.kind}s/{self.subject}/limit"

    @property
    def is_for_each(self) -> bool:
        """Whether every principal has a bucket of its own by it."""
        return self.kind is LimitKind.PRINCIPAL and self.subject == EVERY_PRINCIPAL


@dataclass(frozen=True, order=True, slots=True)
class Limit:
    """A bucket of `burst` calls that fills by `calls_per_s`."""

    name: LimitName
    calls_per_s: int
    burst: int
    updated_us: int
