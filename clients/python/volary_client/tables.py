"""Arrow IPC streams, as services send them in pieces."""

from __future__ import annotations

from collections.abc import AsyncIterable
from typing import Protocol

import pyarrow as pa


class Piece(Protocol):
    """A part of one Arrow IPC stream."""

    @property
    def arrow_ipc(self) -> bytes:
        """The bytes; concatenate in order."""
        ...


async def table_of(pieces: AsyncIterable[Piece]) -> pa.Table:
    """Join the pieces of one Arrow IPC stream to a table; `.to_pandas()` goes on from there."""
    buffer = pa.BufferOutputStream()
    async for piece in pieces:
        buffer.write(piece.arrow_ipc)
    with pa.ipc.open_stream(buffer.getvalue()) as reader:
        return reader.read_all()
