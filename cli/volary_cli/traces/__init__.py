"""A small receiver of OpenTelemetry spans that keeps the recent ones in Postgres."""
