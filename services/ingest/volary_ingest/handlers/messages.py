"""Between what is stored and what is answered."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from volary.ingest.v1 import ingest_service_pb2, source_pb2
from volary.values.v1 import value_pb2
from volary_kit.errors import InvalidArgument
from volary_kit.timestamps import from_us, to_us

from volary_ingest.domain.contract import Outcome
from volary_ingest.domain.rows import BESIDE, TextRow
from volary_ingest.domain.snapshot import DataFile, Snapshot
from volary_ingest.store import SourceKey
from volary_ingest.store.batches import Batch
from volary_ingest.store.quarantine import QuarantinedRecord
from volary_ingest.store.sources import SourceRow


def document_of(source: source_pb2.Source) -> dict[str, Any]:
    """Return the declared document of a source as plain data."""
    return json_format.MessageToDict(source.document)


def source_message(row: SourceRow) -> source_pb2.Source:
    """Return a source."""
    return source_pb2.Source(
        name=row.key.name,
        document=_struct(row.document),
        revision=row.revision,
        document_hash=row.document_hash,
        owner=row.document["owner"],
        on_call=row.document["on_call"],
        cursor=time_message(row.cursor_us),
        etag=_etag(row),
        create_time=time_message(row.create_us),
        update_time=time_message(row.update_us),
    )


def batch_message(key: SourceKey, batch: Batch) -> source_pb2.Batch:
    """Return a batch; it has no name when nothing was new and so nothing is stored."""
    committed = source_pb2.BATCH_STATE_COMMITTED
    return source_pb2.Batch(
        name=f"{key.name}/batches/{batch.id}" if batch.id else "",
        state=source_pb2.BATCH_STATE_HALTED if batch.is_halted else committed,
        read_rows=batch.read,
        accepted_rows=batch.accepted,
        duplicate_rows=batch.duplicates,
        quarantined_rows=batch.quarantined,
        defaulted_values=batch.defaulted,
        rules=outcome_messages(batch.outcomes),
        known_from=time_message(batch.known_from_us),
        known_until=time_message(batch.known_until_us),
        source_revision=batch.source_revision,
        commit_time=time_message(batch.commit_us),
        snapshot=f"{key.name}/snapshots/{batch.snapshot}" if batch.snapshot else "",
    )


def outcome_messages(outcomes: Iterable[Outcome]) -> Iterator[source_pb2.RuleOutcome]:
    """Yield what rules found."""
    for outcome in outcomes:
        yield source_pb2.RuleOutcome(
            rule=outcome.rule,
            severity=outcome.severity,
            rows=outcome.rows,
            observed=outcome.observed,
            bound=outcome.bound,
            summary=outcome.summary,
        )


def quarantined_message(key: SourceKey, record: QuarantinedRecord) -> source_pb2.QuarantinedRecord:
    """Return a record that was put aside."""
    return source_pb2.QuarantinedRecord(
        name=f"{key.name}/quarantine/{record.position}",
        rule=record.rule,
        reason=record.reason,
        record=_struct(record.record),
        batch=f"{key.name}/batches/{record.batch}",
        quarantine_time=time_message(record.quarantine_us),
    )


def snapshot_message(key: SourceKey, snapshot: Snapshot) -> source_pb2.Snapshot:
    """Return a snapshot."""
    return source_pb2.Snapshot(
        name=f"{key.name}/snapshots/{snapshot.id}",
        content_hash=snapshot.id,
        files=[_file(key, file) for file in snapshot.files],
        rows=snapshot.rows,
        known_until=time_message(snapshot.known_until_us),
        create_time=time_message(snapshot.create_us),
    )


def text_rows(records: Iterable[ingest_service_pb2.PushedRecord]) -> list[TextRow]:
    """Return pushed records as text, as a file would have them.

    Raises InvalidArgument `RECORD_INVALID` for NaN, an infinity or a time out of range.
    """
    return [_text_row(record, f"records[{i}]") for i, record in enumerate(records)]


def time_message(time_us: int | None) -> Timestamp | None:
    """Return an instant, None for none."""
    return None if time_us is None else from_us(time_us)


def _text_row(pushed: ingest_service_pb2.PushedRecord, field: str) -> TextRow:
    row: TextRow = {
        name: _text(value, f"{field}.record.fields[{name}]")
        for name, value in pushed.record.fields.items()
    }
    for name, stamp in zip(BESIDE, ("event_time", "known_at"), strict=True):
        if pushed.HasField(stamp):
            row[name] = _time_text(getattr(pushed, stamp), f"{field}.{stamp}")
    return row


def _text(value: value_pb2.Value, field: str) -> str | None:
    match value.WhichOneof("kind"):
        case "string_value":
            return value.string_value
        case "integer_value":
            return str(value.integer_value)
        case "number_value":
            return _number_text(value.number_value, field)
        case "bool_value":
            return "true" if value.bool_value else "false"
        case "timestamp_value":
            return _time_text(value.timestamp_value, field)
        case _:
            return None


def _number_text(number: float, field: str) -> str:
    if not math.isfinite(number):
        raise InvalidArgument("RECORD_INVALID", "a number must be finite", field=field)
    return repr(number)


def _time_text(stamp: Timestamp, field: str) -> str:
    to_us(stamp, field)
    return stamp.ToJsonString()


def _etag(row: SourceRow) -> str:
    text = f"{row.revision}.{row.cursor_us}.{row.update_us}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _struct(data: dict[str, Any]) -> Struct:
    struct = Struct()
    struct.update(data)
    return struct


def _file(key: SourceKey, file: DataFile) -> source_pb2.SnapshotFile:
    return source_pb2.SnapshotFile(
        digest=file.digest,
        rows=file.rows,
        size_bytes=file.size_bytes,
        batch=f"{key.name}/batches/{file.batch}",
    )
