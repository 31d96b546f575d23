"""Volary ingest: pull sources idempotently, under a contract."""
