"""Reads what a rollout's shadow and its callers were answered, and what turned out."""

from __future__ import annotations

import asyncio

import polars as pl
from volary_kit.database import Database

from volary_monitor.domain.shadows import COLUMNS, Pairing, ShadowDiff, compare
from volary_monitor.domain.windows import Span
from volary_monitor.prediction_log import PredictionLog
from volary_monitor.store import predictions


class ShadowReader:
    """Joins the prediction log, where latencies and entities are, with the truths."""

    def __init__(self, database: Database, written: PredictionLog) -> None:
        self._database = database
        self._log = written

    async def compare(self, project: str, model: str, rollout: str, pairing: Pairing) -> ShadowDiff:
        """Return how the candidate's copies differ from the baseline's answers."""
        route = f"{model}/{rollout}/"
        async with self._database.read() as transaction:
            span_us = await predictions.route_span(transaction, project, model, route)
            labels = await predictions.route_labels(transaction, project, model, route)
        if span_us is None:
            return ShadowDiff()
        span = Span(span_us[0], span_us[1] + 1)
        frame = await self._log.read(project, model, span, COLUMNS)
        mine = frame.filter(pl.col("route").str.starts_with(route))
        return await asyncio.to_thread(compare, mine, dict(labels), pairing)
