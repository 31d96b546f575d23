"""The set of versions that gateway wants here, kept on disk.

A replica that starts while gateway is away serves what it served before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volary_inference.domain.predictions import ModelKey, VersionKey


@dataclass(frozen=True, slots=True)
class DesiredVersion:
    """One version to hold."""

    key: VersionKey
    digest: str
    is_production: bool


@dataclass(frozen=True, slots=True)
class Desired:
    """The whole set, at one revision of it."""

    revision: int
    versions: tuple[DesiredVersion, ...] = ()

    @property
    def digests(self) -> dict[VersionKey, str]:
        """The digest of each version."""
        return {version.key: version.digest for version in self.versions}

    @property
    def production(self) -> dict[ModelKey, int]:
        """The production version of each model that has one."""
        return {v.key.of_model: v.key.version for v in self.versions if v.is_production}


class DesiredFile:
    """The last desired set of one replica, as JSON, replaced whole."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Desired | None:
        """Return the last set, None when there is none that can be read."""
        try:
            return _desired(json.loads(self._path.read_text("utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, desired: Desired) -> None:
        """Replace the set."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_suffix(".draft")
        draft.write_text(json.dumps(_document(desired)), "utf-8")
        draft.replace(self._path)


def _document(desired: Desired) -> dict[str, Any]:
    rows = [
        {
            "project": version.key.project,
            "model": version.key.model,
            "version": version.key.version,
            "digest": version.digest,
            "production": version.is_production,
        }
        for version in desired.versions
    ]
    return {"revision": desired.revision, "versions": rows}


def _desired(document: Mapping[str, Any]) -> Desired:
    versions = tuple(
        DesiredVersion(
            VersionKey(str(row["project"]), str(row["model"]), int(row["version"])),
            str(row["digest"]),
            bool(row["production"]),
        )
        for row in document["versions"]
    )
    return Desired(int(document["revision"]), versions)
