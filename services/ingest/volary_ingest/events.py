"""Accepted records and watermarks as events of `volary:source_events`."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import polars as pl
from volary.events.v1 import event_pb2
from volary.values.v1 import value_pb2
from volary_kit.timestamps import from_us

from volary_ingest.domain.rows import micros
from volary_ingest.store import SourceKey

RECORDS = uuid.UUID("0d9a8a6f-6f0e-4b7e-9b0c-2f2f5c0f8d11")
ENVELOPE = ("record_id", "event_time", "known_at")


def record_events(key: SourceKey, frame: pl.DataFrame, batch: str) -> Iterator[event_pb2.Event]:
    """Yield one event a row; its id is of the record, so that a record has one event for ever."""
    columns = [name for name in frame.columns if name not in ENVELOPE]
    rows = frame.select(columns).iter_rows()
    ids = frame.get_column("record_id").to_list()
    times = zip(micros(frame, "event_time"), micros(frame, "known_at"), strict=True)
    for row, record_id, (event_us, known_us) in zip(rows, ids, times, strict=True):
        yield event_pb2.Event(
            id=str(uuid.uuid5(RECORDS, f"{key.name}/{record_id}")),
            project=key.project,
            event_time=from_us(event_us),
            known_at=from_us(known_us),
            source_record=event_pb2.SourceRecordEvent(
                source=key.source,
                record_id=record_id,
                record=record_of(columns, row),
                batch=batch,
            ),
        )


def watermark_event(key: SourceKey, watermark_us: int) -> event_pb2.Event:
    """Return the word that every record known before the watermark has been sent."""
    watermark = from_us(watermark_us)
    return event_pb2.Event(
        id=str(uuid.uuid5(RECORDS, f"{key.name}@{watermark_us}")),
        project=key.project,
        event_time=watermark,
        known_at=watermark,
        watermark=event_pb2.WatermarkEvent(source=key.source, watermark=watermark),
    )


def record_of(columns: Sequence[str], row: Sequence[Any]) -> value_pb2.Record:
    """Return a row as a record; a null is an absent name."""
    fields = zip(columns, row, strict=True)
    return value_pb2.Record(
        fields={name: value_of(value) for name, value in fields if value is not None}
    )


def value_of(value: Any) -> value_pb2.Value:
    """Return a scalar as a value."""
    if isinstance(value, bool):
        return value_pb2.Value(bool_value=value)
    if isinstance(value, int):
        return value_pb2.Value(integer_value=value)
    if isinstance(value, float):
        return value_pb2.Value(number_value=value)
    if isinstance(value, datetime):
        stamp = value_pb2.Value()
        stamp.timestamp_value.FromDatetime(value)
        return stamp
    return value_pb2.Value(string_value=value)
