"""A content-addressed folder: bytes go in, a digest comes out, and nothing else names them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from pathlib import Path
from typing import BinaryIO, Self

from volary_kit.errors import DataLoss, InvalidArgument, NotFound

CHUNK_BYTES = 1 << 20
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def digest_of(data: bytes) -> str:
    """Return `sha256:<64 hex>` of bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def check_digest(digest: str, field: str | None = "digest") -> str:
    """Return the digest; raise InvalidArgument if it is not `sha256:` and 64 hex digits."""
    if DIGEST.fullmatch(digest) is None:
        raise InvalidArgument(
            "DIGEST_MALFORMED", "a digest is sha256: and 64 hex digits", field=field
        )
    return digest


class ArtifactStore:
    """Files in `<folder>/<first 2 hex>/<64 hex>`, each complete and synced or not there.

    A writer writes to a name of its own and renames; two writers of the same bytes both win.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    async def put(
        self,
        chunks: AsyncIterable[bytes],
        *,
        expected: str | None = None,
        max_bytes: int | None = None,
    ) -> str:
        """Store a stream and return its digest.

        Raises InvalidArgument `DIGEST_MISMATCH` when it is not `expected`, and
        `ARTIFACT_TOO_LARGE` past `max_bytes`; nothing is kept then.
        """
        with _Writing(self._folder) as writing:
            async for chunk in chunks:
                writing.check_size(len(chunk), max_bytes)
                await asyncio.to_thread(writing.write, chunk)
            return await asyncio.to_thread(writing.finish, expected)

    def put_bytes(self, data: bytes | Iterable[bytes], *, expected: str | None = None) -> str:
        """Store bytes that are in memory and return their digest; errors as in `put`."""
        with _Writing(self._folder) as writing:
            for chunk in (data,) if isinstance(data, bytes) else data:
                writing.write(chunk)
            return writing.finish(expected)

    def path(self, digest: str) -> Path:
        """Return where an artifact lies; raise NotFound if it does not."""
        path = _path(self._folder, check_digest(digest))
        if not path.is_file():
            raise NotFound(
                "ARTIFACT_NOT_FOUND", f"artifact {digest} is not stored", {"digest": digest}
            )
        return path

    def has(self, digest: str) -> bool:
        """Say whether an artifact is stored."""
        return _path(self._folder, check_digest(digest)).is_file()

    def size(self, digest: str) -> int:
        """Return the size of an artifact in bytes; raise NotFound if it is not stored."""
        return self.path(digest).stat().st_size

    async def open(
        self, digest: str, *, offset: int = 0, chunk_bytes: int = CHUNK_BYTES
    ) -> AsyncIterator[bytes]:
        """Yield an artifact's bytes from `offset`; raise NotFound if it is not stored."""
        path = self.path(digest)
        with await asyncio.to_thread(path.open, "rb") as file:
            file.seek(offset)
            while chunk := await asyncio.to_thread(file.read, chunk_bytes):
                yield chunk

    def read(self, digest: str) -> bytes:
        """Return a whole artifact, checked; raise DataLoss if its bytes have changed."""
        data = self.path(digest).read_bytes()
        if digest_of(data) != digest:
            raise DataLoss("ARTIFACT_CORRUPT", f"artifact {digest} is damaged", {"digest": digest})
        return data


class _Writing:
    """An artifact that is being written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._hash = hashlib.sha256()
        self._bytes = 0
        self._draft = folder / f".{uuid.uuid4().hex}.draft"
        self._file: BinaryIO = self._draft.open("xb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()
        self._draft.unlink(missing_ok=True)

    def check_size(self, more: int, max_bytes: int | None) -> None:
        """Count bytes to come; raise InvalidArgument past the limit."""
        self._bytes += more
        if max_bytes is not None and self._bytes > max_bytes:
            raise InvalidArgument(
                "ARTIFACT_TOO_LARGE", f"an artifact has at most {max_bytes} bytes"
            )

    def write(self, chunk: bytes) -> None:
        """Append a chunk."""
        self._hash.update(chunk)
        self._file.write(chunk)

    def finish(self, expected: str | None) -> str:
        """Put the file in its place and return its digest."""
        digest = f"sha256:{self._hash.hexdigest()}"
        if expected is not None and digest != check_digest(expected):
            raise InvalidArgument(
                "DIGEST_MISMATCH",
                "the bytes are not what the digest says",
                {"expected": expected, "actual": digest},
            )
        self._file.flush()
        os.fsync(self._file.fileno())
        path = _path(self._folder, digest)
        path.parent.mkdir(exist_ok=True)
        self._draft.replace(path)
        return digest


def _path(folder: Path, digest: str) -> Path:
    name = digest.removeprefix("sha256:")
    return folder / name[:2] / name
