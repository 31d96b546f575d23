"""Python values <-> the typed scalars of the contract."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp
from volary.values.v1.value_pb2 import Record, Value
from volary_kit.timestamps import from_us

Scalar = bool | int | float | str | datetime | None
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


def value_of(scalar: Scalar) -> Value:
    """Return the typed scalar; None is null. Raises TypeError for anything else."""
    match scalar:
        case None:
            return Value()
        case bool():
            return Value(bool_value=scalar)
        case int():
            return Value(integer_value=scalar)
        case float():
            return Value(number_value=scalar)
        case str():
            return Value(string_value=scalar)
        case datetime():
            return Value(timestamp_value=timestamp_of(scalar))
    raise TypeError(f"{type(scalar).__name__} is no scalar of the contract")


def record_of(fields: Mapping[str, Scalar]) -> Record:
    """Return a record of scalars."""
    return Record(fields={name: value_of(scalar) for name, scalar in fields.items()})


def timestamp_of(instant: datetime) -> Timestamp:
    """Return the Timestamp of an instant; raises ValueError when it has no time zone."""
    if instant.tzinfo is None:
        raise ValueError("an instant needs a time zone: use datetime(..., tzinfo=UTC)")
    return from_us((instant - EPOCH) // MICROSECOND)
