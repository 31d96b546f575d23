"""`volary.gateway.v1.EdgeService`."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty
from volary.gateway.v1 import edge_pb2, edge_service_pb2, edge_service_pb2_grpc
from volary_kit.clock import Clock
from volary_kit.errors import FailedPrecondition, NotFound
from volary_kit.names import parse, project_of
from volary_kit.pages import cut, page_of
from volary_kit.timestamps import duration_from_us, duration_us, from_us

from volary_gateway.controller import Controller
from volary_gateway.domain.fallbacks import (
    Fallback,
    FallbackOutput,
    FallbackTier,
    check_fallback,
)
from volary_gateway.domain.limits import EVERY_PRINCIPAL, Limit, LimitKind, LimitName
from volary_gateway.domain.names import ModelName
from volary_gateway.handlers import Context
from volary_gateway.handlers.names import MODEL, model_of

FALLBACK = MODEL + "/fallback"
MODEL_LIMIT = MODEL + "/limit"
PRINCIPAL_LIMIT = "projects/{project}/principals/{principal}/limit"
EACH_LIMIT = "projects/{project}/principals/-/limit"
TIERS = {
    FallbackTier.RULE: edge_pb2.FALLBACK_TIER_RULE,
    FallbackTier.NONE: edge_pb2.FALLBACK_TIER_NONE,
}
TIER_OF = {number: tier for tier, number in TIERS.items()}


class EdgeHandler(edge_service_pb2_grpc.EdgeServiceServicer):
    """Manage limits and fallbacks."""

    def __init__(
        self,
        controller: Controller,
        clock: Clock,
        *,
        serves_fallbacks: bool,
        keeps_predictions: bool,
    ) -> None:
        self._controller = controller
        self._clock = clock
        self._serves_fallbacks = serves_fallbacks
        self._keeps_predictions = keeps_predictions

    async def SetLimit(
        self, request: edge_service_pb2.SetLimitRequest, context: Context
    ) -> edge_pb2.Limit:
        asked = request.limit
        limit = Limit(
            _limit_name(asked.name, "limit.name"),
            asked.calls_per_second,
            asked.burst or asked.calls_per_second,
            self._clock.now_us(),
        )
        await self._controller.set_limit(limit)
        return _limit(limit)

    async def ListLimits(
        self, request: edge_service_pb2.ListLimitsRequest, context: Context
    ) -> edge_service_pb2.ListLimitsResponse:
        project, page = project_of(request.parent), page_of(request, str)
        rows = sorted(
            (limit for name, limit in self._controller.limits.items() if name.project == project),
            key=lambda limit: str(limit.name),
        )
        rows = [limit for limit in rows if page.after is None or str(limit.name) > str(page.after)]
        shown, token = cut(rows[: page.limit], page, lambda limit: str(limit.name))
        return edge_service_pb2.ListLimitsResponse(
            limits=[_limit(limit) for limit in shown], next_page_token=token
        )

    async def DeleteLimit(
        self, request: edge_service_pb2.DeleteLimitRequest, context: Context
    ) -> Empty:
        await self._controller.remove_limit(_limit_name(request.name, "name"))
        return Empty()

    async def SetFallback(
        self, request: edge_service_pb2.SetFallbackRequest, context: Context
    ) -> edge_pb2.Fallback:
        asked = request.fallback
        if not self._serves_fallbacks:
            raise FailedPrecondition(
                "FALLBACK_NOT_SERVED", "this gateway has no fallback_port: set it first"
            )
        outputs = tuple(FallbackOutput(each.name, tuple(each.row)) for each in asked.outputs)
        tier = TIER_OF[asked.tier]
        check_fallback(tier, outputs)
        model = model_of(asked.name, template=FALLBACK, field="fallback.name")
        cached_us = duration_us(asked.cached_for) if asked.HasField("cached_for") else 0
        if cached_us and not self._keeps_predictions:
            raise FailedPrecondition(
                "PREDICTIONS_NOT_KEPT", "this gateway has no redis_url: set it first"
            )
        fallback = Fallback(model, tier, outputs, self._clock.now_us(), cached_us)
        await self._controller.set_fallback(fallback)
        return _fallback(fallback)

    async def GetFallback(
        self, request: edge_service_pb2.GetFallbackRequest, context: Context
    ) -> edge_pb2.Fallback:
        return _fallback(self._known(model_of(request.name, template=FALLBACK)))

    async def DeleteFallback(
        self, request: edge_service_pb2.DeleteFallbackRequest, context: Context
    ) -> Empty:
        model = model_of(request.name, template=FALLBACK)
        self._known(model)
        await self._controller.remove_fallback(model)
        return Empty()

    def _known(self, model: ModelName) -> Fallback:
        fallback = self._controller.fallbacks.get(model)
        if fallback is None:
            raise NotFound(
                "FALLBACK_NOT_FOUND",
                f"{model} declares no fallback",
                metadata={"model": str(model)},
            )
        return fallback


def _limit_name(name: str, field: str) -> LimitName:
    if name.endswith(f"/{EVERY_PRINCIPAL}/limit"):
        ids = parse(EACH_LIMIT, name, field=field)
        return LimitName(ids["project"], LimitKind.PRINCIPAL, EVERY_PRINCIPAL)
    if "/models/" in name:
        model = model_of(name, template=MODEL_LIMIT, field=field)
        return LimitName(model.project, LimitKind.MODEL, model.model)
    ids = parse(PRINCIPAL_LIMIT, name, field=field)
    return LimitName(ids["project"], LimitKind.PRINCIPAL, ids["principal"])


def _limit(limit: Limit) -> edge_pb2.Limit:
    return edge_pb2.Limit(
        name=str(limit.name),
        calls_per_second=limit.calls_per_s,
        burst=limit.burst,
        update_time=from_us(limit.updated_us),
    )


def _fallback(fallback: Fallback) -> edge_pb2.Fallback:
    return edge_pb2.Fallback(
        name=f"{fallback.model}/fallback",
        tier=TIERS[fallback.tier],
        outputs=[
            edge_pb2.FallbackOutput(name=output.name, row=output.row) for output in fallback.outputs
        ],
        update_time=from_us(fallback.updated_us),
        cached_for=duration_from_us(fallback.cached_us) if fallback.cached_us else None,
    )
