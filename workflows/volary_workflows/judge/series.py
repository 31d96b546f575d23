"""Events of candidate and baseline by cell: the one shape that every test reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from volary_workflows.judge.inputs import LATENCY_QUANTILE, Cell, Counts, Guard, Inputs

Floats = NDArray[np.float64]
MIN_CALLS_TO_FREEZE = 200
MIN_CALLS_OF_EFFECT = 100
MIN_CALLS_OF_LATE = 50


@dataclass(frozen=True)
class Series:
    """Counts over cells, shape [..., cells]; `shares` is the candidate's share of the attempts.

    `is_per_step` forbids to multiply evidence over cells, because the same users come back in the
    next one; `first_events` (candidate's, baseline's), where somebody counts them, are those of
    users who had none in an earlier cell, and these may be multiplied. `limit` is the acceptable
    event rate, 0 for none. `has_margin` is false where only the limit counts towards PASS.
    """

    name: str
    shares: Floats
    candidate_events: Floats
    candidate_calls: Floats
    baseline_events: Floats
    baseline_calls: Floats
    is_per_step: bool = False
    limit: float = 0.0
    has_margin: bool = True
    first_events: tuple[Floats, Floats] | None = None

    @property
    def splits(self) -> NDArray[np.bool_]:
        """Return which cells compare two versions."""
        return (self.shares > 0) & (self.shares < 1)

    @property
    def is_full(self) -> NDArray[np.bool_]:
        """Return in which cells the candidate answers every call."""
        return self.shares >= 1

    def candidate_rate(self) -> float:
        """Return the candidate's event rate over all cells, 0 without calls."""
        return _rate(self.candidate_events, self.candidate_calls)

    def baseline_rate(self) -> float:
        """Return the baseline's event rate over the cells that compare, 0 without calls."""
        return _rate(self.baseline_events[self.splits], self.baseline_calls[self.splits])

    def effect(self) -> float:
        """Return the rise of the event rate, absolute, weighted by the candidate's calls.

        Compared within each cell, so that a common cause that changes between steps cancels. In
        cells without a baseline the declared limit stands in for it. Of all, or of the latest
        cells that hold 100 calls or more, the largest: a regression may begin late.
        """
        lone = self.is_full & (self.limit > 0)
        used = (self.splits & (self.baseline_calls > 0)) | lone
        used &= self.candidate_calls > 0
        if not used.any():
            return 0.0
        baseline = self.baseline_events / np.maximum(self.baseline_calls, 1)
        expected = np.where(lone, self.limit, baseline) * self.candidate_calls
        excess = (self.candidate_events - expected)[used][::-1].cumsum()
        calls = self.candidate_calls[used][::-1].cumsum()
        is_enough = (calls >= MIN_CALLS_OF_EFFECT) | (calls == calls[-1])
        return float((excess / calls)[is_enough].max())

    def extended(self, calls: float) -> Series:
        """Return the series with `calls` more attempts in the last cell, at the rates of late.

        Those are the last cell's where it has `MIN_CALLS_OF_LATE` of the version, else all cells'.
        """
        share = float(self.shares[-1])
        ours, theirs = calls * share, calls * (1 - share)
        our_rate, their_rate = self.candidate_rate(), self.baseline_rate()
        if self.candidate_calls[-1] >= MIN_CALLS_OF_LATE:
            our_rate = _rate(self.candidate_events[-1:], self.candidate_calls[-1:])
        if self.baseline_calls[-1] >= MIN_CALLS_OF_LATE:
            their_rate = _rate(self.baseline_events[-1:], self.baseline_calls[-1:])
        return replace(
            self,
            candidate_events=_grown(self.candidate_events, ours * our_rate),
            candidate_calls=_grown(self.candidate_calls, ours),
            baseline_events=_grown(self.baseline_events, theirs * their_rate),
            baseline_calls=_grown(self.baseline_calls, theirs),
        )


def series_of(guard: Guard, inputs: Inputs) -> list[Series]:
    """Return the series that a guard tests: one for errors, one a threshold for latency.

    A copy waits behind the call that it copies, so shadow cells say nothing about latency.
    """
    if guard.kind != LATENCY_QUANTILE:
        return [_error_series(guard, inputs)]
    thresholds = inputs.thresholds_us or inputs.edges_us
    cells = [cell for cell in inputs.cells if not cell.shadow]
    if not cells or not thresholds:
        return []
    series = [_latency_series(cells, inputs.edges_us, threshold) for threshold in thresholds]
    if guard.ceiling > 0 and (guard.limit_us > 0 or inputs.thresholds_us):
        limit = edge_at_or_above(inputs.edges_us, guard.limit_us or thresholds[-1])
        absolute = _latency_series(cells, inputs.edges_us, limit)
        series.append(replace(absolute, limit=guard.ceiling, has_margin=False))
    return series


def label_series(metric: str, cells: list[Cell], *, is_sticky: bool) -> Series:
    """Return the labelled calls as events: a label whose delay depends on the version shows."""
    splits = [cell for cell in cells if not cell.shadow]

    def labelled(counts: Counts) -> int:
        return counts.scores[metric].count if metric in counts.scores else 0

    series = _series(f"labels of {metric}", splits, labelled, labelled)
    return replace(series, is_per_step=is_sticky)


def assignment_series(inputs: Inputs) -> Series:
    """Return the calls themselves as events: under the declared split their ratio is 1.

    Retries are attempts of their own and mirrors no draws, so mirrored cells are left out.
    """
    splits = [cell for cell in inputs.cells if not cell.shadow]
    size = _users if inputs.sticky else _calls
    return replace(_series("assignment", splits, size, size), is_per_step=inputs.sticky)


def freeze_thresholds(
    edges_us: list[int], counts: list[int], quantiles: tuple[float, ...]
) -> list[int]:
    """Return the edges at the quantiles of earlier traffic; none below 200 calls.

    The overflow bin has no edge, so a quantile in it takes the last edge.
    """
    total = sum(counts)
    if total < MIN_CALLS_TO_FREEZE or not edges_us:
        return []
    cumulative = np.cumsum(counts)
    positions = [int(np.searchsorted(cumulative, q * total)) for q in quantiles]
    return sorted({edges_us[min(position, len(edges_us) - 1)] for position in positions})


def edge_at_or_above(edges_us: list[int], limit_us: int) -> int:
    """Return the first frozen edge that is not below the limit, or the last."""
    return next((edge for edge in edges_us if edge >= limit_us), edges_us[-1])


def _error_series(guard: Guard, inputs: Inputs) -> Series:
    if not inputs.sticky:
        series = _series(guard.metric, inputs.cells, _errors, _calls)
        return replace(series, limit=guard.ceiling)
    series = _sticky_series(guard.metric, inputs.cells)
    return replace(series, is_per_step=True, limit=guard.ceiling)


def _sticky_series(name: str, cells: list[Cell]) -> Series:
    """Return users of split cells, and calls of mirrored ones.

    A mirror copies calls of the very same users, drawn call by call: there the calls themselves
    are independent of who made them, and users are not, for the candidate sees fewer calls of each.
    """
    users = _series(name, cells, _users_with_error, _users)
    calls = _series(name, cells, _errors, _calls)
    is_shadow = np.array([cell.shadow for cell in cells], dtype=bool)
    first = _series(name, cells, _users_first_error, _users)
    is_counted = not is_shadow.all() and all(
        cell.shadow or min(cell.candidate.users_first_error, cell.baseline.users_first_error) >= 0
        for cell in cells
    )
    ours = np.where(is_shadow, 0.0, first.candidate_events)
    theirs = np.where(is_shadow, 0.0, first.baseline_events)
    return replace(
        users,
        candidate_events=np.where(is_shadow, calls.candidate_events, users.candidate_events),
        candidate_calls=np.where(is_shadow, calls.candidate_calls, users.candidate_calls),
        baseline_events=np.where(is_shadow, calls.baseline_events, users.baseline_events),
        baseline_calls=np.where(is_shadow, calls.baseline_calls, users.baseline_calls),
        first_events=(ours, theirs) if is_counted else None,
    )


def _latency_series(cells: list[Cell], edges_us: list[int], threshold_us: int) -> Series:
    first = edges_us.index(threshold_us) + 1

    def slower(counts: Counts) -> int:
        return sum(counts.latency[first:])

    def timed(counts: Counts) -> int:
        return sum(counts.latency)

    return _series(f"latency > {threshold_us / 1000:g} ms", cells, slower, timed)


def _series(
    name: str, cells: list[Cell], events: Callable[[Counts], int], size: Callable[[Counts], int]
) -> Series:
    def column(read: Callable[[Counts], int], side: str) -> Floats:
        return np.array([read(getattr(cell, side)) for cell in cells], dtype=np.float64)

    return Series(
        name=name,
        shares=np.array([cell.event_share for cell in cells], dtype=np.float64),
        candidate_events=column(events, "candidate"),
        candidate_calls=column(size, "candidate"),
        baseline_events=column(events, "baseline"),
        baseline_calls=column(size, "baseline"),
    )


def _calls(counts: Counts) -> int:
    return counts.calls


def _errors(counts: Counts) -> int:
    return counts.errors


def _users(counts: Counts) -> int:
    return counts.users


def _users_with_error(counts: Counts) -> int:
    return counts.users_with_error


def _users_first_error(counts: Counts) -> int:
    return counts.users_first_error


def _grown(values: Floats, by: float) -> Floats:
    grown = values.copy()
    grown[-1] += by
    return grown


def _rate(events: Floats, calls: Floats) -> float:
    total = float(calls.sum())
    return float(events.sum()) / total if total else 0.0
