"""`volary.gateway.v1.TrafficService`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from volary.gateway.v1 import traffic_pb2, traffic_service_pb2, traffic_service_pb2_grpc
from volary_kit.calls import Call, current_call
from volary_kit.names import project_of
from volary_kit.timestamps import from_us

from volary_gateway.controller import Controller, Decide, Served
from volary_gateway.domain import traffic as domain
from volary_gateway.domain.names import ModelName
from volary_gateway.handlers import Context
from volary_gateway.handlers.names import TRAFFIC, model_of, rollout_of

RESERVE_S = 0.2  # of the deadline, to answer that the push is not in effect yet
PAGE = 100
TIMING = "server-timing"  # https://www.w3.org/TR/server-timing: milliseconds by stage
CAUSES = {cause: traffic_pb2.Cause.Value(f"CAUSE_{cause.name}") for cause in domain.Cause}
CAUSE_OF = {number: cause for cause, number in CAUSES.items()}
MISSING_KEYS = {
    key: traffic_pb2.MissingKey.Value(f"MISSING_KEY_{key.name}") for key in domain.MissingKey
}
MISSING_KEY_OF = {number: key for key, number in MISSING_KEYS.items()}


class TrafficHandler(traffic_service_pb2_grpc.TrafficServiceServicer):
    """Read and change what serves."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    async def GetTraffic(
        self, request: traffic_service_pb2.GetTrafficRequest, context: Context
    ) -> traffic_pb2.Traffic:
        return to_proto(self._controller.served(_model(request.name)))

    async def ListTraffic(
        self, request: traffic_service_pb2.ListTrafficRequest, context: Context
    ) -> traffic_service_pb2.ListTrafficResponse:
        project = project_of(request.parent)
        models = [
            t.model
            for t in self._controller.traffic
            if t.model.project == project and t.model.model > request.page_token
        ]
        page = models[: request.page_size or PAGE]
        return traffic_service_pb2.ListTrafficResponse(
            traffic=[to_proto(self._controller.served(model)) for model in page],
            next_page_token=page[-1].model if len(page) < len(models) else "",
        )

    async def WatchTraffic(
        self, request: traffic_service_pb2.WatchTrafficRequest, context: Context
    ) -> AsyncIterator[traffic_pb2.Traffic]:
        model = _model(request.name)
        last: domain.Traffic | None = None
        while True:
            change = self._controller.changes.next()
            served = self._controller.served(model)
            if served.traffic != last:
                last = served.traffic
                yield to_proto(served)
            await change.wait()

    async def SetTraffic(
        self, request: traffic_service_pb2.SetTrafficRequest, context: Context
    ) -> traffic_pb2.Traffic:
        change = _change(request)
        return await self._write(
            context,
            request.name,
            request.request_id,
            lambda now, is_ready, now_us: domain.set_traffic(now, change, is_ready, now_us),
        )

    async def Rollback(
        self, request: traffic_service_pb2.RollbackRequest, context: Context
    ) -> traffic_pb2.Traffic:
        who = _who(current_call())
        return await self._write(
            context,
            request.name,
            request.request_id,
            lambda now, is_ready, now_us: domain.roll_back(
                now, request.version, who, request.reason, is_ready, now_us
            ),
        )

    async def Brake(
        self, request: traffic_service_pb2.BrakeRequest, context: Context
    ) -> traffic_pb2.Traffic:
        who = _who(current_call())
        return await self._write(
            context,
            request.name,
            request.request_id,
            lambda now, _is_ready, now_us: domain.brake(
                now, request.version, request.weight, who, request.reason, now_us
            ),
        )

    async def _write(
        self, context: Context, name: str, request_id: str, decide: Decide
    ) -> traffic_pb2.Traffic:
        call = current_call()
        left_s = max(0.0, call.remaining_s() - RESERVE_S)
        key = f"{call.method} {request_id}" if request_id else ""
        served = await self._controller.write(_model(name), key, decide, left_s)
        context.set_trailing_metadata(((TIMING, _timing(served.taken_s)),))
        return to_proto(served)


def _timing(taken_s: Mapping[str, float]) -> str:
    return ", ".join(f"{stage};dur={taken * 1e3:.3f}" for stage, taken in taken_s.items())


def _model(name: str) -> ModelName:
    return model_of(name, template=TRAFFIC)


def _change(request: traffic_service_pb2.SetTrafficRequest) -> domain.Change:
    shadow = request.shadow if request.HasField("shadow") else None
    return domain.Change(
        expected_generation=request.expected_generation,
        weights=tuple(domain.Weight(w.version, w.weight) for w in request.weights),
        shadow=domain.Shadow(shadow.version, shadow.fraction) if shadow else None,
        stickiness=domain.Stickiness(
            request.stickiness.header,
            request.stickiness.salt,
            MISSING_KEY_OF.get(request.stickiness.missing_key, domain.MissingKey.BASELINE),
        ),
        rollout=rollout_of(request.rollout),
        step=request.step,
        cause=CAUSE_OF.get(request.cause, domain.Cause.SET),
        principal=_who(current_call()),
        reason=request.reason,
        production=request.production_version,
        segments=tuple(_segment(each) for each in request.segments.segments)
        if request.HasField("segments")
        else None,
        audience=domain.Audience(request.audience.header, tuple(request.audience.values))
        if request.HasField("audience")
        else None,
    )


def _segment(segment: traffic_pb2.Segment) -> domain.Segment:
    weights = tuple(domain.Weight(w.version, w.weight) for w in segment.weights)
    return domain.Segment(segment.id, segment.header, tuple(segment.values), weights)


def _who(call: Call) -> str:
    return call.principal.on_behalf_of or call.principal.subject


def to_proto(served: Served) -> traffic_pb2.Traffic:
    """Return a model's traffic as the API has it."""
    traffic = served.traffic
    reply = traffic_pb2.Traffic(
        name=f"{traffic.model}/traffic",
        generation=traffic.generation,
        weights=[traffic_pb2.Weight(version=w.version, weight=w.weight) for w in traffic.weights],
        stickiness=traffic_pb2.Stickiness(
            header=traffic.stickiness.header,
            salt=traffic.stickiness.salt,
            missing_key=MISSING_KEYS[traffic.stickiness.missing_key],
        ),
        rollout=_rollout_name(traffic),
        step=traffic.step,
        cause=CAUSES[traffic.cause],
        principal=traffic.principal,
        reason=traffic.reason,
        update_time=from_us(traffic.updated_us),
        route=str(traffic.route),
        snapshot_version=served.snapshot.version,
        in_effect=served.in_effect,
        production_version=traffic.production,
        previous_version=traffic.previous,
        segments=[
            traffic_pb2.Segment(
                id=each.id,
                header=each.header,
                values=each.values,
                weights=[
                    traffic_pb2.Weight(version=w.version, weight=w.weight) for w in each.weights
                ],
            )
            for each in traffic.segments
        ],
    )
    if traffic.shadow is not None:
        reply.shadow.version = traffic.shadow.version
        reply.shadow.fraction = traffic.shadow.fraction
    if traffic.audience is not None:
        reply.audience.header = traffic.audience.header
        reply.audience.values.extend(traffic.audience.values)
    return reply


def _rollout_name(traffic: domain.Traffic) -> str:
    if not traffic.rollout:
        return ""
    return f"projects/{traffic.model.project}/rollouts/{traffic.rollout}"
