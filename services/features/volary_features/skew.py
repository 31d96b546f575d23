"""Skew: what is served beside what the offline join says, bit for bit."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from volary_features.definitions import ResolvedSet
from volary_features.offline.training import columns_by_source, joined
from volary_features.online.reading import Answer, Question
from volary_features.snapshots import Snapshots


@dataclass(frozen=True)
class Skew:
    """How many numbers were compared, which features differ, and against which snapshots."""

    compared: int
    different: int
    features: Sequence[str]
    snapshots: Sequence[str]


async def skew_of(
    resolved: ResolvedSet, question: Question, answer: Answer, snapshots: Snapshots
) -> Skew:
    """Compare an answer with the join over the newest snapshots."""
    tables = await snapshots.tables(
        resolved.project, columns_by_source(resolved.plan), {}, known_until_us=None
    )
    keys = {name: pl.Series(values, dtype=pl.String) for name, values in question.keys.items()}
    rows = {name: table.rows for name, table in tables.items()}
    vectors, _ = await asyncio.to_thread(
        joined, resolved.plan, rows, keys, question.fields, question.asked_us
    )
    is_different = vectors.view(np.int64) != np.ascontiguousarray(answer.vectors).view(np.int64)
    names = [
        name
        for name, column in zip(resolved.plan.names, is_different.T, strict=True)
        if column.any()
    ]
    used = sorted(table.snapshot for table in tables.values())
    return Skew(vectors.size, int(is_different.sum()), names, used)
