"""E-processes on cumulative counts: rate ratio, non-inferiority, absolute ceiling.

An e-process E starts at 1 and has expectation <= 1 at any stopping time under its null
hypothesis, so P(sup E >= 1/alpha) <= alpha however often one looks (Ville 1939; Ramdas,
Grunwald, Vovk, Shafer, "Game-theoretic statistics and safe anytime-valid inference", Statistical
Science 38, 2023). All values here are natural logarithms, with shape [...] for counts [..., cells].

Rate ratio, conditional on events. Each call goes to the candidate with the known share q,
independently of everything before; event rates are r (baseline) and rho r (candidate). Given that
an event happened, it is the candidate's with probability p(rho) = q rho / (q rho + 1 - q): r
cancels, so it may drift with the hour. The likelihood ratio of an alternative rho against a bound
R is, with D(x) = q x + 1 - q, for an event of the candidate (rho/R) D(R)/D(rho), for one of the
baseline D(R)/D(rho). Over a cell with a candidate and b baseline events

    log L(rho; R) = a log(rho/R) + (a + b) log(D(R)/D(rho)),

which needs only cumulative counts; cells multiply, so evidence carries over a ramp where q
changes. The expectation of one factor is monotone in p and equals 1 at p(R): under rho_true <= R
it is <= 1 for rho > R ("worse"), under rho_true >= R it is <= 1 for rho < R ("not inferior").
A mixture over a grid of rho is again an e-process (Robbins 1970; Lindon and Malek, "Anytime-valid
inference for multinomial count data", NeurIPS 2022).

Sticky users come back, and differ: their calls are no independent draws, but each user's arm is.
An event is then the first error of a user in a cell, and a user who had it is out of that cell.
With rho = 1 for every user the next one to have it is the candidate's with probability q. With
rho <= 1 each user of the candidate has it later than with rho = 1 (coupling), so at any moment a
is no larger and b is the same, and L rises with a and falls with b: the bound holds though a
better candidate leaves more users to err later. Users return in the next cell with the arm that
was seen, so cells do not multiply: a union bound over cells takes the place of the product. Users
whose first error of the whole rollout fell into a cell do multiply over a rising ramp: coupling
moves a candidate's event to a later cell, where q is larger and the event weighs less. Half of
alpha is spent on that product where gateway counts such users, half on the cells.

Mirrored calls are no draws: the baseline answers each call, the candidate a fraction f of them.
With q = f/(1+f) and factors x for the candidate, y for the baseline, one call has expectation
1 + f e_c (x - 1) + e_b (y - 1) + P(both)(x - 1)(y - 1). The linear terms sum to <= 0 under the null
and x, y lie on opposite sides of 1, so the bound holds however the two outcomes depend.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from volary_workflows.judge.series import Floats, Series

RATIOS_WORSE = np.array([1.3, 1.6, 2.0, 2.7, 3.5, 4.5, 6.0, 9.0, 15.0])
SHARES_OF_BOUND = np.array([0.0, 0.1, 0.3, 0.5, 0.65, 0.8, 0.9])
WEIGHTS_OF_BOUND = np.array([0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
MULTIPLES_OF_LIMIT = np.array([1.2, 1.5, 2.0, 3.0, 5.0, 10.0])
RATIOS_OF_ASSIGNMENT = np.array([1 / 2, 1 / 1.25, 1.25, 2.0])
FIRST_START = 0.9
HIGHEST_RATE = 0.99
IMPOSSIBLE = -1e12  # log of a likelihood that is 0, finite so that no event times it is 0


def log_mean(logs: Floats, weights: Floats) -> Floats:
    """Return log sum w exp(logs) over the last axis; -inf terms count as zero."""
    peak = np.maximum(logs.max(axis=-1, keepdims=True), -1e300)
    return np.log((weights * np.exp(logs - peak)).sum(axis=-1)) + peak[..., 0]


def start_weights(cells: int) -> Floats:
    """Return the weights of evidence that starts at cell 0, 1, 2, ...; they sum to less than 1.

    A regression that begins at a later step must not first win back what the healthy steps
    earned. A mean of e-processes that start later (each is 1 before) is an e-process, and
    0.9 at the first cell, 0.1/(j(j+1)) at the j-th costs log(1/0.9) = 0.11 of log evidence.
    """
    later = np.arange(1, cells, dtype=np.float64)
    return np.concatenate([[FIRST_START], (1 - FIRST_START) / (later * (later + 1))])[:cells]


def log_worse(series: Series, bound: float = 1.0) -> Floats:
    """Return the log evidence against "the rate ratio is at most `bound`": no higher, for 1.

    In cells where the candidate answers every call nothing is left to compare with; there the
    null is "its rate is at most the declared limit", and without a limit they say nothing.
    """
    split = log_ratio_cells(series, RATIOS_WORSE * bound, bound)
    full = _log_above_limit_cells(series)
    weights = start_weights(series.shares.shape[-1])
    uniform = np.full(len(RATIOS_WORSE), 1 / len(RATIOS_WORSE))
    multiples = np.full(len(MULTIPLES_OF_LIMIT), 1 / len(MULTIPLES_OF_LIMIT))
    if series.is_per_step:
        each = log_mean(split, uniform) + log_mean(full, multiples) + np.log(weights)
        return _with_first_events(series, bound, each.max(axis=-1))
    by_start = log_mean(suffix_sums(split), uniform) + log_mean(suffix_sums(full), multiples)
    return log_started(by_start, weights)


def _with_first_events(series: Series, bound: float, by_cell: Floats) -> Floats:
    """Return the larger of the restarted cells and the product over users' first events."""
    if series.first_events is None:
        return by_cell
    ours, theirs = series.first_events
    first = replace(series, candidate_events=ours, baseline_events=theirs)
    ratios = RATIOS_WORSE * bound
    uniform = np.full(len(ratios), 1 / len(ratios))
    carried = log_mean(log_ratio_cells(first, ratios, bound).sum(axis=-2), uniform)
    return np.maximum(by_cell, carried) + math.log(0.5)


def log_not_inferior(series: Series, margin: float) -> Floats:
    """Return the log evidence against "the rate ratio is 1 + margin or more"."""
    bound = 1 + margin
    ratios = SHARES_OF_BOUND[1:] * bound
    cells = log_ratio_cells(series, ratios, bound)
    uniform = np.full(len(ratios), 1 / len(ratios))
    if series.is_per_step:
        weights = start_weights(series.shares.shape[-1])
        return (log_mean(cells, uniform) + np.log(weights)).max(axis=-1)
    return log_mean(cells.sum(axis=-2), uniform)


def log_below_limit(series: Series) -> Floats:
    """Return the log evidence against "the candidate's event rate is the limit or more".

    Bernoulli likelihood ratio of s < limit against the limit c, over n calls with a events:
    a log(s/c) + (n - a) log((1 - s)/(1 - c)), mixed over s/c in a grid that includes 0. It is what
    lets a candidate without a single error pass. Evidence that starts at the j-th cell weighs
    2^-(j+1), so that an incident in an early step does not stand in the way for ever: with 0.4 on
    s = 0 and c = 5 %, a clean first cell of log(100 / (0.5 0.4)) / -log(0.95) = 122 calls is
    evidence of 100.
    """
    limit = series.limit
    rates = SHARES_OF_BOUND * limit
    events = series.candidate_events[..., None]
    others = (series.candidate_calls - series.candidate_events)[..., None]
    cells = _bernoulli(events, others, rates, limit)
    weights = 0.5 ** np.arange(1, series.shares.shape[-1] + 1)
    if series.is_per_step:
        return (log_mean(cells, WEIGHTS_OF_BOUND) + np.log(weights)).max(axis=-1)
    return log_started(log_mean(suffix_sums(cells), WEIGHTS_OF_BOUND), weights)


def log_misassigned(series: Series) -> Floats:
    """Return the log evidence against "calls were drawn with the declared shares".

    The rate-ratio test with calls as events and ratios on both sides of 1; small deviations
    (under about 10 % of the odds) never fire.
    """
    cells = log_ratio_cells(series, RATIOS_OF_ASSIGNMENT, bound=1.0)
    uniform = np.full(len(RATIOS_OF_ASSIGNMENT), 1 / len(RATIOS_OF_ASSIGNMENT))
    if series.is_per_step:  # users come back with the arm that was seen
        weights = start_weights(series.shares.shape[-1])
        return (log_mean(cells, uniform) + np.log(weights)).max(axis=-1)
    return log_mean(cells.sum(axis=-2), uniform)


def log_started(by_start: Floats, weights: Floats) -> Floats:
    """Return the log mean over starting cells; what has not started yet stands at 1."""
    not_started = np.zeros((*by_start.shape[:-1], 1))
    logs = np.concatenate([by_start, not_started], axis=-1)
    return log_mean(logs, np.append(weights, 1 - weights.sum()))


def log_ratio_cells(series: Series, ratios: Floats, bound: float) -> Floats:
    """Return log L(rho; bound) by cell and ratio, 0 in cells that compare nothing."""
    share = series.shares[..., None]
    ours = series.candidate_events[..., None]
    both = ours + series.baseline_events[..., None]
    scale = np.log((share * bound + 1 - share) / (share * ratios + 1 - share))
    logs = ours * np.log(ratios / bound) + both * scale
    return np.where(series.splits[..., None], logs, 0.0)


def _log_above_limit_cells(series: Series) -> Floats:
    """Return the Bernoulli log likelihood ratio of rates above the limit, in full cells only."""
    shape = (*series.candidate_events.shape, len(MULTIPLES_OF_LIMIT))
    if series.limit <= 0:
        return np.zeros(shape)
    rates = np.minimum(MULTIPLES_OF_LIMIT * series.limit, HIGHEST_RATE)
    events = series.candidate_events[..., None]
    others = (series.candidate_calls - series.candidate_events)[..., None]
    logs = _bernoulli(events, others, rates, series.limit)
    return np.where(series.is_full[..., None], logs, 0.0)


def _bernoulli(events: Floats, others: Floats, rates: Floats, bound: float) -> Floats:
    """Return the log likelihood ratio of rates against the bound; a rate of 0 forbids events."""
    ratio = np.where(rates > 0, np.log(np.maximum(rates, 1e-300) / bound), IMPOSSIBLE)
    return events * ratio + others * np.log((1 - rates) / (1 - bound))


def suffix_sums(cells: Floats) -> Floats:
    """Return at position j the sum over the cells from j on; cells are on axis -2."""
    return cells[..., ::-1, :].cumsum(axis=-2)[..., ::-1, :]
