"""Where spans are kept: one table, bounded by age and by number."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg

from volary_cli.traces.spans import Span

SCHEMA = "traces"
CONNECT_S = 5
NS_PER_MS = 1_000_000
TABLES = """
CREATE TABLE IF NOT EXISTS spans (
  id bigint GENERATED ALWAYS AS IDENTITY,
  trace_id text NOT NULL, span_id text NOT NULL, parent_id text NOT NULL,
  service text NOT NULL, name text NOT NULL, kind text NOT NULL,
  start_ns bigint NOT NULL, end_ns bigint NOT NULL,
  error text, attributes jsonb NOT NULL,
  received_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (trace_id, span_id)
);
CREATE INDEX IF NOT EXISTS spans_by_id ON spans (id);
CREATE INDEX IF NOT EXISTS spans_by_arrival ON spans (received_at);
CREATE INDEX IF NOT EXISTS spans_by_service ON spans (service, start_ns DESC);
"""
INSERT = """
INSERT INTO spans (trace_id, span_id, parent_id, service, name, kind, start_ns, end_ns,
                   error, attributes)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
                     $7::bigint[], $8::bigint[], $9::text[], $10::jsonb[])
ON CONFLICT DO NOTHING
"""
COLUMNS = "trace_id, span_id, parent_id, service, name, kind, start_ns, end_ns, error, attributes"
# a trace is found by any of its spans and shown by its first
SEARCH = """
WITH hits AS (
  SELECT trace_id, max(start_ns) AS last_ns FROM spans
  WHERE ($1::text IS NULL OR service IN ($1, 'volary-' || $1))
    AND ($2::text IS NULL OR strpos(lower(name), lower($2)) > 0)
    AND end_ns - start_ns >= $3
  GROUP BY trace_id ORDER BY last_ns DESC LIMIT $4
)
SELECT hits.trace_id, root.service, root.name, whole.began_ns, whole.ended_ns, whole.spans,
       whole.errors
FROM hits
CROSS JOIN LATERAL (
  SELECT min(start_ns) AS began_ns, max(end_ns) AS ended_ns, count(*) AS spans,
         count(error) AS errors
  FROM spans WHERE trace_id = hits.trace_id) AS whole
CROSS JOIN LATERAL (
  SELECT service, name FROM spans WHERE trace_id = hits.trace_id
  ORDER BY start_ns, parent_id LIMIT 1) AS root
ORDER BY whole.began_ns DESC
"""


@dataclass(frozen=True)
class TraceSummary:
    """One trace: its first span, when it began (ns), how long it took and how much is in it."""

    trace_id: str
    service: str
    name: str
    start_ns: int
    duration_ms: float
    spans: int
    errors: int


class SpanStore:
    """The table, behind a small pool."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def create_tables(self) -> None:
        """Make the table where there is none."""
        await self._pool.execute(TABLES)

    async def ping(self) -> None:
        """Answer whether the database does."""
        await self._pool.fetchval("SELECT 1")

    async def add(self, spans: Sequence[Span]) -> None:
        """Insert a batch in one statement; a span that came before stays as it is."""
        columns: list[list[Any]] = [
            [span.trace_id for span in spans],
            [span.span_id for span in spans],
            [span.parent_id for span in spans],
            [span.service for span in spans],
            [span.name for span in spans],
            [span.kind for span in spans],
            [span.start_ns for span in spans],
            [span.end_ns for span in spans],
            [span.error for span in spans],
            [json.dumps(dict(span.attributes)) for span in spans],
        ]
        await self._pool.execute(INSERT, *columns)

    async def prune(self, *, max_age_s: float, max_spans: int) -> None:
        """Delete what is too old and, beyond the number, what came first."""
        await self._pool.execute(
            "DELETE FROM spans WHERE received_at < now() - make_interval(secs => $1)", max_age_s
        )
        await self._pool.execute(
            "DELETE FROM spans WHERE id <= (SELECT max(id) FROM spans) - $1", max_spans
        )

    async def trace(self, trace_id: str) -> list[Span]:
        """Return the spans of the one trace whose id begins so; none when it is not one."""
        rows = await self._pool.fetch(
            f"SELECT {COLUMNS} FROM spans WHERE starts_with(trace_id, $1)",  # noqa: S608 - a constant
            trace_id.lower(),
        )
        is_one = len({row["trace_id"] for row in rows}) == 1
        return [_span(row) for row in rows] if is_one else []

    async def search(
        self, *, service: str | None, name: str | None, min_ms: float, limit: int
    ) -> list[TraceSummary]:
        """Return the newest traces with a span of that service, name part and duration."""
        rows = await self._pool.fetch(SEARCH, service, name, int(min_ms * NS_PER_MS), limit)
        return [
            TraceSummary(
                trace_id=row["trace_id"],
                service=row["service"],
                name=row["name"],
                start_ns=row["began_ns"],
                duration_ms=(row["ended_ns"] - row["began_ns"]) / NS_PER_MS,
                spans=row["spans"],
                errors=row["errors"],
            )
            for row in rows
        ]


def _span(row: asyncpg.Record) -> Span:
    return Span(**{**dict(row), "attributes": json.loads(row["attributes"])})


@asynccontextmanager
async def opened_store(url: str) -> AsyncIterator[SpanStore]:
    """Open the store; connections are made when they are needed."""
    settings = {"search_path": SCHEMA, "application_name": "volary-traces"}
    async with asyncpg.create_pool(
        url, min_size=0, max_size=4, timeout=CONNECT_S, server_settings=settings
    ) as pool:
        yield SpanStore(pool)
