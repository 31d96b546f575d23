"""The outcome half of `volary.monitor.v1.MonitorService`: protos to domain and back."""

from __future__ import annotations

from volary.monitor.v1 import monitor_pb2
from volary.monitor.v1 import monitor_service_pb2 as pb
from volary_kit.timestamps import from_us, to_us

from volary_monitor.domain.outcomes import Outcome, Question, Source, Sums, Unit, unit_hash
from volary_monitor.store.outcomes import Recorded

UNITS = {
    monitor_pb2.OUTCOME_UNIT_UNSPECIFIED: Unit.CALL,
    monitor_pb2.OUTCOME_UNIT_CALL: Unit.CALL,
    monitor_pb2.OUTCOME_UNIT_UNIT_PER_STEP: Unit.PER_STEP,
    monitor_pb2.OUTCOME_UNIT_UNIT: Unit.UNIT,
}
EVEN = 0.5


def outcome_of(given: monitor_pb2.Outcome, project: str, now_us: int) -> Outcome:
    """Return an outcome as the domain has it."""
    is_dated = given.HasField("known_at")
    known_us = to_us(given.known_at, "outcomes.known_at") if is_dated else now_us
    return Outcome(
        given.prediction_id, given.metric, given.value, unit_hash(project, given.unit), known_us
    )


def question_of(request: pb.SumOutcomesRequest, now_us: int) -> Question:
    """Return what is asked; InvalidArgument with the field named."""
    is_truth = request.source == monitor_pb2.OUTCOME_SOURCE_TRUTH
    return Question(
        rollout=request.rollout,
        metric=request.metric,
        lower=request.lower,
        upper=request.upper,
        unit=UNITS[request.unit],
        source=Source.TRUTH if is_truth else Source.RECORDED,
        as_of_us=to_us(request.as_of, "as_of") if request.HasField("as_of") else now_us,
        threshold=request.threshold or EVEN,
    )


def sums_of(found: Sums, as_of_us: int) -> monitor_pb2.OutcomeSums:
    """Return sums as the API has them."""
    return monitor_pb2.OutcomeSums(
        variants=[monitor_pb2.VariantOutcomes(**vars(each)) for each in found.variants],
        clipped=found.clipped,
        without_unit=found.without_unit,
        later=found.later,
        as_of=from_us(as_of_us),
    )


def recorded_of(found: Recorded) -> pb.RecordOutcomesResponse:
    """Return what became of outcomes as the API has it."""
    return pb.RecordOutcomesResponse(
        recorded=found.new, duplicates=found.duplicates, conflicting=found.conflicting
    )
