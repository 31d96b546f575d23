"""What came of the calls that a rollout routed: monitor's sums as scores of the judge's cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from volary.monitor.v1 import monitor_pb2, monitor_service_pb2, monitor_service_pb2_grpc
from volary_kit.channels import Channels

from volary_workflows.judge.inputs import BUSINESS, Cell, Counts, Guard, Inputs, Scores
from volary_workflows.rollout.names import model_name
from volary_workflows.rollout.tasks import Subject


class Outcomes:
    """Monitor's sums of what callers recorded as outcomes."""

    def __init__(self, channels: Channels) -> None:
        self._monitor = monitor_service_pb2_grpc.MonitorServiceStub(channels.to("monitor"))

    async def scored(
        self, inputs: Inputs, guards: Iterable[Guard], subject: Subject, baseline: int, rollout: str
    ) -> Inputs:
        """Return the inputs with the scores of each business metric that the guards name."""
        cells = inputs.cells
        for metric, guard in {g.metric: g for g in guards if g.kind == BUSINESS}.items():
            sums = await self._summed(subject, rollout, guard, is_sticky=inputs.sticky)
            cells = [_scored(cell, metric, sums, subject.version, baseline) for cell in cells]
        return replace(inputs, cells=cells)

    async def _summed(
        self, subject: Subject, rollout: str, guard: Guard, *, is_sticky: bool
    ) -> dict[tuple[int, int], Scores]:
        """Return the scores by generation and version: of calls, or of users where they stay."""
        found = await self._monitor.SumOutcomes(
            monitor_service_pb2.SumOutcomesRequest(
                model=model_name(subject),
                rollout=rollout,
                metric=guard.metric,
                lower=guard.lower,
                upper=guard.upper,
                unit=monitor_pb2.OUTCOME_UNIT_UNIT_PER_STEP
                if is_sticky
                else monitor_pb2.OUTCOME_UNIT_CALL,
            )
        )
        return {
            (each.generation, each.version): Scores(each.count, each.total, each.squares)
            for each in found.variants
        }


def _scored(
    cell: Cell, metric: str, sums: Mapping[tuple[int, int], Scores], candidate: int, baseline: int
) -> Cell:
    if cell.shadow:
        return cell  # a copy's answer reached nobody, so nothing came of it

    def added(counts: Counts, version: int) -> Counts:
        scores = sums.get((cell.generation, version))
        return replace(counts, scores=counts.scores | {metric: scores}) if scores else counts

    return replace(
        cell, candidate=added(cell.candidate, candidate), baseline=added(cell.baseline, baseline)
    )
