"""UTC microseconds <-> the protobuf well-known time types.

Integers only: a float of seconds loses microseconds from 2004 on.
"""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from volary_kit.errors import InvalidArgument

MICROS = 1_000_000
YEAR_1_S = -62_135_596_800  # 0001-01-01T00:00:00Z, the first second of a Timestamp
YEAR_9999_S = 253_402_300_799  # 9999-12-31T23:59:59Z, its last
LONGEST_S = 315_576_000_000  # 10,000 years: the limit of a Duration


def to_us(timestamp: Timestamp, field: str | None = None) -> int:
    """Return UTC microseconds; raise InvalidArgument outside the years 1 to 9999."""
    if not YEAR_1_S <= timestamp.seconds <= YEAR_9999_S or not 0 <= timestamp.nanos < 10**9:
        raise InvalidArgument("TIME_OUT_OF_RANGE", "a time is outside years 1 to 9999", field=field)
    return timestamp.seconds * MICROS + timestamp.nanos // 1_000


def from_us(time_us: int) -> Timestamp:
    """Return the Timestamp of UTC microseconds."""
    seconds, micros = divmod(time_us, MICROS)
    return Timestamp(seconds=seconds, nanos=micros * 1_000)


def duration_us(duration: Duration, field: str | None = None) -> int:
    """Return the microseconds of a Duration, towards zero; raise InvalidArgument if malformed."""
    seconds, nanos = duration.seconds, duration.nanos
    mixed = (seconds > 0 and nanos < 0) or (seconds < 0 and nanos > 0)
    if abs(seconds) > LONGEST_S or abs(nanos) >= 10**9 or mixed:
        raise InvalidArgument("DURATION_OUT_OF_RANGE", "a duration is malformed", field=field)
    return seconds * MICROS + int(nanos / 1_000)


def duration_from_us(length_us: int) -> Duration:
    """Return the Duration of microseconds; both parts carry the same sign."""
    sign = -1 if length_us < 0 else 1
    seconds, micros = divmod(abs(length_us), MICROS)
    return Duration(seconds=sign * seconds, nanos=sign * micros * 1_000)
