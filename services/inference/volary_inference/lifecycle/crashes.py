"""How often an artifact took a process down with it, kept on disk by digest.

Two things count. A trial that ends by a signal or runs out of time; and a serving process that
died of a fault of its own (SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL) while the artifact ran. A
process that was killed from outside accuses nobody: the journal of what ran is read only when
the fault handler has left its word.
"""

from __future__ import annotations

import faulthandler
import json
import mmap
from pathlib import Path
from typing import IO

CRASHES_TO_QUARANTINE = 3
MAX_SLOTS = 4_096
DIGEST_BYTES = 71  # `sha256:` and 64 hex digits


class Crashes:
    """The count of each digest."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "crashes.json"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._counts = self._read()

    def add(self, digest: str) -> int:
        """Count one more; return how many there were."""
        self._counts[digest] = self._counts.get(digest, 0) + 1
        self._write()
        return self._counts[digest]

    def is_quarantined(self, digest: str) -> bool:
        """True once an artifact has crashed too often."""
        return self._counts.get(digest, 0) >= CRASHES_TO_QUARANTINE

    def count(self, digest: str) -> int:
        """Return how often an artifact crashed."""
        return self._counts.get(digest, 0)

    def forgive(self, digest: str) -> None:
        """Forget what an artifact did: somebody asked for it again."""
        if self._counts.pop(digest, None) is not None:
            self._write()

    def _read(self) -> dict[str, int]:
        try:
            document = json.loads(self._path.read_text("utf-8"))
            return {str(k): int(v) for k, v in document["crashes"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def _write(self) -> None:
        draft = self._path.with_suffix(".draft")
        draft.write_text(json.dumps({"crashes": self._counts}), "utf-8")
        draft.replace(self._path)


class RunJournal:
    """What runs at this instant, in a mapped file that outlives the process: a byte a version."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._word = folder / "running", folder / "fault"
        self._file: IO[bytes] | None = None
        self._fault: IO[bytes] | None = None
        self._map: mmap.mmap | None = None
        self._free = list(range(MAX_SLOTS))[::-1]

    @property
    def path(self) -> Path:
        """The file that is mapped, for whoever notes runs in it too."""
        return self._path

    def suspects(self) -> list[str]:
        """Return the digests that ran when the process before died of a fault of its own."""
        try:
            if not self._word.read_bytes():
                return []
            data = self._path.read_bytes()
        except OSError:
            return []
        width = DIGEST_BYTES + 1
        slots = (data[i : i + width] for i in range(0, len(data), width))
        return sorted(
            {slot[1:].decode("ascii", "replace") for slot in slots if slot[:1] == b"\x01"}
        )

    def open(self) -> None:
        """Begin anew, and have the fault handler leave its word beside the journal."""
        size = MAX_SLOTS * (DIGEST_BYTES + 1)
        for path in (self._path, self._word):
            # new files: a process that is not quite gone yet still has the old ones mapped
            path.unlink(missing_ok=True)
        self._file = self._path.open("w+b")
        self._file.truncate(size)
        self._map = mmap.mmap(self._file.fileno(), size)
        self._fault = self._word.open("wb")
        faulthandler.enable(self._fault)

    def close(self) -> None:
        """End without accusing anybody."""
        faulthandler.disable()
        for each in (self._map, self._file, self._fault):
            if each is not None:
                each.close()
        self._map = None
        self._word.unlink(missing_ok=True)

    def slot(self, digest: str) -> Slot:
        """Return where a version notes that it runs; without room its runs are not noted."""
        if self._map is None or not self._free:
            return Slot(None, 0)
        at = self._free.pop() * (DIGEST_BYTES + 1)
        self._map[at + 1 : at + 1 + DIGEST_BYTES] = digest.encode()[:DIGEST_BYTES].ljust(
            DIGEST_BYTES
        )
        return Slot(self._map, at)

    def slot_beside(self, other: Slot) -> Slot:
        """Return another place for the same artifact."""
        if self._map is None or not other.is_noted:
            return Slot(None, 0)
        start = other.at + 1
        return self.slot(self._map[start : start + DIGEST_BYTES].decode().rstrip())

    def release(self, slot: Slot) -> None:
        """Take back the place of a version that runs no more."""
        if slot.is_noted:
            self._free.append(slot.at // (DIGEST_BYTES + 1))


class Slot:
    """A byte that is 1 while a version runs: two stores into memory a batch."""

    __slots__ = ("_map", "at")

    def __init__(self, journal: mmap.mmap | None, at: int) -> None:
        self._map = journal
        self.at = at

    @property
    def is_noted(self) -> bool:
        """True when there was room for it."""
        return self._map is not None

    def __enter__(self) -> None:
        if self._map is not None:
            self._map[self.at] = 1

    def __exit__(self, *_: object) -> None:
        if self._map is not None:
            self._map[self.at] = 0
