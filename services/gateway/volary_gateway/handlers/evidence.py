"""`volary.gateway.v1.EvidenceService`."""

from __future__ import annotations

from volary.gateway.v1 import evidence_pb2, evidence_service_pb2, evidence_service_pb2_grpc
from volary_kit.clock import Clock
from volary_kit.timestamps import from_us

from volary_gateway.controller import Controller
from volary_gateway.domain.evidence import LATENCY_EDGES_US, is_error_event, latency_counts
from volary_gateway.handlers import Context
from volary_gateway.handlers.names import model_of
from volary_gateway.recorder import Recorder
from volary_gateway.store.evidence import StoredVariant


class EvidenceHandler(evidence_service_pb2_grpc.EvidenceServiceServicer):
    """Tell the judge what Envoy saw."""

    def __init__(self, recorder: Recorder, controller: Controller, clock: Clock) -> None:
        self._recorder = recorder
        self._controller = controller
        self._clock = clock

    async def GetEvidence(
        self, request: evidence_service_pb2.GetEvidenceRequest, context: Context
    ) -> evidence_pb2.Evidence:
        model = model_of(request.model, field="model")
        traffic = self._controller.served(model).traffic
        rollout = request.rollout.rpartition("/")[2]
        variants, gaps = await self._recorder.read(model, rollout, request.from_generation)
        doubtful = {gap.generation for gap in gaps if gap.is_open or gap.lost}
        is_counted = self._recorder.is_reconciled(model)
        return evidence_pb2.Evidence(
            model=str(model),
            rollout=rollout,
            variants=[
                _counters(each, is_complete=is_counted and each.variant.generation not in doubtful)
                for each in variants
            ],
            complete=is_counted and not doubtful,
            missing_records=sum(gap.lost for gap in gaps),
            read_time=from_us(self._clock.now_us()),
            generation=traffic.generation,
        )


def _counters(stored: StoredVariant, *, is_complete: bool) -> evidence_pb2.VariantCounters:
    variant = stored.variant
    return evidence_pb2.VariantCounters(
        model=variant.model,
        rollout=variant.rollout,
        step=variant.step,
        generation=variant.generation,
        version=variant.version,
        shadow=variant.is_shadow,
        outcomes=[
            evidence_pb2.OutcomeCount(
                code=outcome.code,
                tier=outcome.tier,
                count=outcome.attempts,
                first_attempts=outcome.firsts,
                error_event=is_error_event(outcome.code, outcome.tier),
            )
            for outcome in stored.outcomes
        ],
        latency=evidence_pb2.LatencyCounts(
            edges_us=LATENCY_EDGES_US, counts=latency_counts(stored.latencies)
        ),
        users=evidence_pb2.UserCounts(
            users=stored.users,
            users_with_error=stored.users_with_error,
            users_first_error=stored.users_first_error,
        ),
        first_time=from_us(stored.first_us),
        last_time=from_us(stored.last_us),
        complete=is_complete,
    )
