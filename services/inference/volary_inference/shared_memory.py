"""System shared memory of V2: tensors in segments that a caller on this machine has made.

Off unless the settings name a prefix; then only segments whose key begins with it can be
registered, and only by callers on the loopback. A segment is read and written by system calls,
never mapped: a caller that cuts it short gets an error instead of a SIGBUS in this process. No
error names a key, so nobody learns by asking which segments there are.
"""

from __future__ import annotations

import os
import re
import stat
import threading
from dataclasses import dataclass
from pathlib import Path

from volary_kit.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    VolaryError,
)

FOLDER = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory is on Linux
KEY = re.compile(r"/?[A-Za-z0-9][A-Za-z0-9_.\-]{0,126}")
LOOPBACK = ("ipv4:127.", "ipv6:[::1]", "ipv6:%5B::1%5D", "unix:")
MAX_REGIONS = 1_024  # one descriptor each


@dataclass(frozen=True, slots=True)
class Region:
    """A stretch of a segment, open under a name of the caller's."""

    name: str
    key: str
    offset: int
    size: int
    descriptor: int

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes; raise InvalidArgument past its end, FailedPrecondition if they are gone."""
        self._check(offset, size)
        data = os.pread(self.descriptor, size, self.offset + offset)
        if len(data) != size:
            raise FailedPrecondition("REGION_CUT_SHORT", "the region has shrunk")
        return data

    def write(self, offset: int, room: int, data: bytes) -> None:
        """Put bytes; raise InvalidArgument when there is no room for them."""
        self._check(offset, room)
        if len(data) > room:
            text = f"the output has {len(data)} bytes, there is room for {room}"
            raise InvalidArgument("REGION_TOO_SMALL", text)
        if os.fstat(self.descriptor).st_size < self.offset + offset + len(data):
            raise FailedPrecondition("REGION_CUT_SHORT", "the region has shrunk")
        os.pwrite(self.descriptor, data, self.offset + offset)

    def _check(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise InvalidArgument("OUTSIDE_OF_REGION", f"the region has {self.size} bytes")


class Regions:
    """The regions of every project, by name."""

    def __init__(self, prefix: str, folder: Path = FOLDER) -> None:
        self._prefix = prefix
        self._folder = folder
        self._lock = threading.Lock()
        self._regions: dict[tuple[str, str], Region] = {}

    def register(self, project: str, name: str, key: str, offset: int, size: int) -> None:
        """Open a segment under a name.

        Raises AlreadyExists `REGION_EXISTS`, InvalidArgument `REGION_REFUSED` whatever is wrong
        with the segment: not there, not ours, too short.
        """
        if not name or size == 0:
            raise InvalidArgument("REGION_INVALID", "a region has a name and a size", field="name")
        with self._lock:
            if (project, name) in self._regions:
                raise AlreadyExists("REGION_EXISTS", "a region of this name is registered")
            if len(self._regions) >= MAX_REGIONS:
                raise ResourceExhausted("REGIONS_FULL", f"{MAX_REGIONS} regions are registered")
            descriptor = self._open(key, offset + size)
            self._regions[project, name] = Region(name, key, offset, size, descriptor)

    def unregister(self, project: str, name: str) -> None:
        """Close one region of a project, all when the name is empty; none is no error."""
        with self._lock:
            gone = [k for k in self._regions if k[0] == project and name in ("", k[1])]
            for each in gone:
                os.close(self._regions.pop(each).descriptor)

    def of(self, project: str, name: str) -> list[Region]:
        """Return a project's regions, or the one named; raise NotFound."""
        found = [region for key, region in sorted(self._regions.items()) if key[0] == project]
        if not name:
            return found
        return [self.region(project, name)]

    def region(self, project: str, name: str) -> Region:
        """Return a region; raise NotFound."""
        found = self._regions.get((project, name))
        if found is None:
            raise NotFound("REGION_NOT_FOUND", "no region of this name is registered")
        return found

    def close(self) -> None:
        """Close every region."""
        for project, _ in list(self._regions):
            self.unregister(project, "")

    def _open(self, key: str, end: int) -> int:
        name = key.removeprefix("/")
        if not KEY.fullmatch(key) or not name.startswith(self._prefix):
            raise _refused()
        try:
            descriptor = os.open(self._folder / name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            raise _refused() from None
        seen = os.fstat(descriptor)
        if not stat.S_ISREG(seen.st_mode) or seen.st_size < end:
            os.close(descriptor)
            raise _refused()
        return descriptor


def require_local(peer: str) -> None:
    """Raise PermissionDenied unless a gRPC peer is on this machine."""
    if not peer.startswith(LOOPBACK):
        raise not_local()


def not_local() -> PermissionDenied:
    """Return the error of a caller on another machine."""
    return PermissionDenied("NOT_LOCAL", "shared memory is for callers on the server's machine")


def _refused() -> VolaryError:
    return InvalidArgument("REGION_REFUSED", "the segment cannot be registered here", field="key")
