"""Gateway's counters as the judge's cells."""

from __future__ import annotations

from collections.abc import Iterable

from volary.gateway.v1 import evidence_pb2

from volary_workflows.judge.inputs import Cell, Counts
from volary_workflows.rollout.messages import WHOLE, TrafficStep


def cells_of(
    evidence: evidence_pb2.Evidence, written: list[TrafficStep], candidate: int, baseline: int
) -> list[Cell]:
    """Return one cell a step that the rollout wrote, in order of generation.

    Counts of generations that it did not write are left out: their shares are not its own. A
    step with a mirror counts the mirrored copies of the candidate against the served calls.
    """
    cells: list[Cell] = []
    for step in sorted(written, key=lambda each: each.generation):
        mine = [v for v in evidence.variants if v.generation == step.generation]
        is_shadow = step.shadow > 0
        cells.append(
            Cell(
                step=step.step,
                generation=step.generation,
                share=(step.shadow if is_shadow else step.weight) / WHOLE,
                candidate=counts_of(_of(mine, candidate, is_shadow=is_shadow)),
                baseline=counts_of(_of(mine, baseline, is_shadow=False)),
                shadow=is_shadow,
                complete=all(variant.complete for variant in mine),
            )
        )
    return cells


def counts_of(variants: Iterable[evidence_pb2.VariantCounters]) -> Counts:
    """Return the counts of one version in one cell; several rows are added up.

    First attempts alone: a retry is no event of its own. Which outcomes count against a version
    is gateway's to say, and in which step a user's first error of the rollout fell.
    """
    calls = errors = users = users_with_error = users_first_error = 0
    latency: list[int] = []
    for variant in variants:
        for outcome in variant.outcomes:
            calls += outcome.first_attempts
            errors += outcome.first_attempts if outcome.error_event else 0
        latency = _added(latency, list(variant.latency.counts))
        users += variant.users.users
        users_with_error += variant.users.users_with_error
        users_first_error += variant.users.users_first_error
    return Counts(calls, errors, latency, users, users_with_error, users_first_error)


def edges_of(evidence: evidence_pb2.Evidence) -> list[int]:
    """Return the frozen latency edges, empty before the first attempt."""
    return next((list(v.latency.edges_us) for v in evidence.variants if v.latency.edges_us), [])


def latency_of(evidence: evidence_pb2.Evidence, version: int) -> list[int]:
    """Return the latency counts of a version's served calls over everything in the evidence."""
    return counts_of(_of(evidence.variants, version, is_shadow=False)).latency


def step_calls(evidence: evidence_pb2.Evidence, written: list[TrafficStep], candidate: int) -> int:
    """Return how many calls, or copies, the candidate answered since the last write."""
    if not written:
        return 0
    last = written[-1]
    mine = [v for v in evidence.variants if v.generation == last.generation]
    return counts_of(_of(mine, candidate, is_shadow=last.shadow > 0)).calls


def _of(
    variants: Iterable[evidence_pb2.VariantCounters], version: int, *, is_shadow: bool
) -> list[evidence_pb2.VariantCounters]:
    return [v for v in variants if v.version == version and v.shadow == is_shadow]


def _added(left: list[int], right: list[int]) -> list[int]:
    if not left or not right:
        return left or right
    return [a + b for a, b in zip(left, right, strict=True)]
