"""Tables on the wire: one Arrow IPC stream, in pieces that fit into messages.

Needs the extra `arrow`: most services send no tables.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import pyarrow as pa

CHUNK_BYTES = 1 << 20


def ipc_chunks(table: pa.Table, *, slice_rows: int) -> Iterator[bytes]:
    """Yield a table as one Arrow IPC stream, in record batches of `slice_rows`, at most 1 MiB each.

    Source: Arrow columnar format, "IPC Streaming Format".
    """
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        for batch in table.to_batches(max_chunksize=slice_rows):
            stream.write_batch(batch)
            yield from _drained(sink)
    yield from _drained(sink)


def _drained(sink: io.BytesIO) -> Iterator[bytes]:
    data = sink.getvalue()
    sink.seek(0)
    sink.truncate()
    for start in range(0, len(data), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]
