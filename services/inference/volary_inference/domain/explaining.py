"""Which inputs moved a score: Shapley values, sampled, through the version's own batcher.

For a permutation of the inputs and a background row, the inputs are put in one after the other
and each is given what the score moved by; the mean over permutations and rows estimates the
Shapley value (Strumbelj and Kononenko, 2014) without bias. Each permutation is used in both
directions, which takes out most of the variance (Mitchell et al., 2022). Base and contributions
add up to the score exactly, whatever the budget.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from volary_kit.clock import Clock
from volary_kit.errors import FailedPrecondition, Internal, InvalidArgument

from volary_inference.domain.batching import LAST, RunFailed, Ticket
from volary_inference.domain.signatures import VARIES
from volary_inference.domain.versions import Serving

DEFAULT_EVALUATIONS = 1_024
Score = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Explanation:
    """Base, contribution a column, and the evaluations that they took."""

    base: float
    contributions: np.ndarray
    evaluations: int


def explain(row: np.ndarray, background: np.ndarray, score: Score, budget: int) -> Explanation:
    """Explain the score of one row [D] against background rows [N, D].

    `score` takes rows [M, D] and gives [M]. The draws depend on the row alone, so the same row
    has the same explanation. Raises InvalidArgument `BUDGET_TOO_SMALL`.
    """
    width = len(row)
    walks = (budget or DEFAULT_EVALUATIONS) // (width + 1)
    if walks == 0:
        text = f"{width} inputs need at least {width + 1} evaluations"
        raise InvalidArgument("BUDGET_TOO_SMALL", text, field="max_evaluations")
    draw = np.random.default_rng(zlib.crc32(row.tobytes()))
    orders = _orders(draw, width, walks)
    starts = background[draw.permutation(np.arange(walks) % len(background))]
    # points[w, k]: walk w after its first k inputs were put in
    points = np.repeat(starts[:, None, :], width + 1, axis=1)
    ranks = np.argsort(orders, axis=1)
    is_in = ranks[:, None, :] < np.arange(width + 1)[None, :, None]
    points = np.where(is_in, row, points)
    scores = score(points.reshape(-1, width)).reshape(walks, width + 1)
    steps = np.diff(scores, axis=1)  # steps[w, k] belongs to input orders[w, k]
    contributions = np.take_along_axis(steps, ranks, axis=1).mean(axis=0)
    return Explanation(float(scores[:, 0].mean()), contributions, walks * (width + 1))


def batched_score(serving: Serving, deadline_s: float, clock: Clock) -> Score:
    """Return the version's score, run through its batcher like calls, one batch at a time.

    Raises what a call would: `OVERLOADED` when it cannot finish in time.
    """
    name, output = serving.signature.inputs[0].name, serving.signature.outputs[0].name
    size = serving.batcher.policy.max_rows

    def score(rows: np.ndarray) -> np.ndarray:
        parts: list[np.ndarray] = []
        for start in range(0, len(rows), size):
            part = np.ascontiguousarray(rows[start : start + size])
            # a prediction never waits for an explanation that has not begun
            ticket = Ticket({name: part}, len(part), deadline_s, LAST)
            serving.batcher.put(ticket)
            try:
                outputs = ticket.wait(max(0.0, deadline_s - clock.monotonic_s()))
            except RunFailed as error:
                raise Internal("RUN_FAILED", "the graph failed on this input") from error
            parts.append(np.asarray(outputs[output], np.float64).reshape(len(part)))
        return np.concatenate(parts)

    return score


def background_of(serving: Serving) -> np.ndarray:
    """Return the rows that stand for "not known"; raise FailedPrecondition `NOT_EXPLAINABLE`."""
    signature, guard = serving.signature, serving.guard
    is_row = len(signature.inputs) == 1 and len(signature.inputs[0].shape) == 2
    is_score = signature.outputs[0].shape in ((VARIES,), (VARIES, 1))
    if not (signature.is_batched and is_row and is_score):
        raise FailedPrecondition(
            "NOT_EXPLAINABLE", "the version does not turn one row of numbers into one score"
        )
    if guard.background is None:
        raise FailedPrecondition(
            "NOT_EXPLAINABLE", "the version was registered without golden rows"
        )
    return guard.background


def _orders(draw: np.random.Generator, width: int, walks: int) -> np.ndarray:
    """Return permutations, every second one the reverse of the one before."""
    drawn = [draw.permutation(width) for _ in range((walks + 1) // 2)]
    both = [order for each in drawn for order in (each, each[::-1])]
    return np.array(both[:walks])
