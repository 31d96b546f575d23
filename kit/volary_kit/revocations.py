"""The list of revoked keys: gateway writes it, every service that verifies credentials reads it.

The edge refuses a revoked key by Envoy's own configuration; a service that is called directly
refuses it by this file, `{"revoked": ["<key id>", ...]}`, within `watched.RELOAD_S`.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from pathlib import Path

from volary_kit.clock import Clock
from volary_kit.watched import WatchedFile


class Revocations:
    """Say of a key id whether it is revoked; without a file none is."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._file = WatchedFile(path, clock, self._take)
        self._ids: frozenset[str] = frozenset()

    def __call__(self, key_id: str) -> bool:
        self._file.refresh()
        return key_id in self._ids

    def _take(self, text: str) -> None:
        self._ids = parse_revocations(text)


def parse_revocations(text: str) -> frozenset[str]:
    """Return the key ids of a list; raise ValueError if it is broken."""
    document = json.loads(text)
    ids = document.get("revoked") if isinstance(document, dict) else None
    if not isinstance(ids, list) or not all(isinstance(key_id, str) for key_id in ids):
        raise ValueError("a revocation list is an object with a list `revoked` of key ids")
    return frozenset(ids)


def write_revocations(path: Path, key_ids: Iterable[str]) -> None:
    """Replace the list atomically, so that a reader never sees half of it."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fresh.write_text(json.dumps({"revoked": sorted(key_ids)}) + "\n")
    fresh.replace(path)
