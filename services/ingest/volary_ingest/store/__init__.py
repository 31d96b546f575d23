"""The catalog on Postgres, and the Parquet files that it names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SourceKey:
    """A source within its project."""

    project: str
    source: str

    def row(self) -> dict[str, str]:
        """Return the key as columns."""
        return {"project": self.project, "source": self.source}

    @property
    def name(self) -> str:
        """Its resource name."""
        return f"projects/{self.project}/sources/{self.source}"
