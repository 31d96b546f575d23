"""`volary.monitor.v1.MonitorService`."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp
from volary.monitor.v1 import monitor_service_pb2 as pb
from volary.monitor.v1.monitor_pb2 import (
    Action,
    Alert,
    MonitorPolicy,
    OutcomeSums,
    Quality,
    ShadowComparison,
)
from volary.monitor.v1.monitor_service_pb2_grpc import MonitorServiceServicer
from volary_kit import documents, names
from volary_kit.calls import current_call
from volary_kit.clock import Clock
from volary_kit.database import Database
from volary_kit.errors import FailedPrecondition, InvalidArgument
from volary_kit.pages import cut, page_of
from volary_kit.timestamps import to_us

from volary_monitor.domain import policy
from volary_monitor.domain.actions import Allowed
from volary_monitor.domain.shadows import Pairing
from volary_monitor.domain.truth import Truth
from volary_monitor.domain.windows import Span, window_of
from volary_monitor.handlers import messages
from volary_monitor.handlers.actions import STATE_NAMES, action_of
from volary_monitor.handlers.outcomes import outcome_of, question_of, recorded_of, sums_of
from volary_monitor.judging import Judge
from volary_monitor.shadow_reader import ShadowReader
from volary_monitor.store import actions, alerts, outcomes, policies, predictions, truths, windows

Context = grpc.aio.ServicerContext[Any, Any]
POLICY = "projects/{project}/monitorPolicies/{policy}"
MODEL = "projects/{project}/models/{model}"
ALERT = "projects/{project}/alerts/{alert}"
LOOK_EVERY_S = 0.25
EVEN = 0.5
EARLIEST_US, LATEST_US = -(1 << 62), 1 << 62


class MonitorHandler(MonitorServiceServicer):
    """Policies, quality, drift, alerts, predictions, on Postgres."""

    def __init__(
        self,
        database: Database,
        judge: Judge,
        shadows: ShadowReader,
        clock: Clock,
        allowed: Allowed | None = None,
    ) -> None:
        self._allowed = allowed or Allowed()
        self._database = database
        self._shadows = shadows
        self._judge = judge
        self._clock = clock

    async def ApplyMonitorPolicy(
        self, request: pb.ApplyMonitorPolicyRequest, context: Context
    ) -> MonitorPolicy:
        given = request.monitor_policy
        ids = names.parse(POLICY, given.name, field="monitor_policy.name")
        data = MessageToDict(given.document)
        found = policy.read(data)
        if found.name != ids["policy"]:
            raise InvalidArgument(
                "NAME_MISMATCH",
                "the document has another name",
                field="monitor_policy.document.name",
            )
        self._allowed.require(found.spec.actions)
        if request.validate_only:
            return _preview(given, found, data)
        async with self._database.transaction() as transaction:
            row = await policies.put(transaction, ids["project"], data, found, self._clock.now_us())
        self._judge.wake()
        return messages.policy_of(row)

    async def GetMonitorPolicy(
        self, request: pb.GetMonitorPolicyRequest, context: Context
    ) -> MonitorPolicy:
        ids = names.parse(POLICY, request.name, field="name")
        async with self._database.read() as transaction:
            return messages.policy_of(
                await policies.get(transaction, ids["project"], ids["policy"])
            )

    async def ListMonitorPolicies(
        self, request: pb.ListMonitorPoliciesRequest, context: Context
    ) -> pb.ListMonitorPoliciesResponse:
        project, page = names.project_of(request.parent), page_of(request, str)
        async with self._database.read() as transaction:
            rows = await policies.page(transaction, project, page)
        shown, token = cut(rows, page, lambda row: row.policy)
        return pb.ListMonitorPoliciesResponse(
            monitor_policies=map(messages.policy_of, shown), next_page_token=token
        )

    async def GetQuality(
        self, request: pb.GetQualityRequest, context: Context
    ) -> pb.GetQualityResponse:
        ids = names.parse(MODEL, request.model, field="model")
        span = Span(
            _bound(request, "start_time", EARLIEST_US), _bound(request, "end_time", LATEST_US)
        )
        async with self._database.read() as transaction:
            length_us = None
            if request.by_window:
                row = await policies.of_model(transaction, ids["project"], ids["model"])
                length_us = _length_us(row, ids["model"])
            rows = await predictions.scored(
                transaction, **ids, span=span, include_shadow=request.include_shadow
            )
        parts: dict[Span | None, list[Any]] = defaultdict(list)
        for each in rows:
            parts[None if length_us is None else window_of(each.event_us, length_us)].append(each)
        quality: list[Quality] = []
        for part, group in parts.items():
            quality += await self._quality(ids, part, group)
        quality.sort(key=lambda found: (found.version, to_us(found.window_start)))
        return pb.GetQualityResponse(quality=quality)

    async def _quality(
        self, ids: dict[str, str], span: Span | None, rows: list[Any]
    ) -> list[Quality]:
        measured = await self._judge.measure(ids["project"], ids["model"], rows)
        return [
            messages.quality_of(ids["model"], version, span, found)
            for version, found in measured.items()
        ]

    async def ListDrift(
        self, request: pb.ListDriftRequest, context: Context
    ) -> pb.ListDriftResponse:
        ids, page = names.parse(MODEL, request.model, field="model"), page_of(request, str)
        async with self._database.read() as transaction:
            rows = await windows.page_drift(
                transaction,
                ids["project"],
                ids["model"],
                page,
                drifted_only=request.drifted_only,
            )
        shown, token = cut(rows, page, windows.key_of)
        return pb.ListDriftResponse(drift=map(messages.drift_of, shown), next_page_token=token)

    async def ListAlerts(
        self, request: pb.ListAlertsRequest, context: Context
    ) -> pb.ListAlertsResponse:
        project, page = names.project_of(request.parent), page_of(request, str)
        async with self._database.read() as transaction:
            rows = await alerts.page(
                transaction,
                project,
                page,
                model=request.model,
                state=messages.STATE_NAMES.get(request.state),
            )
        shown, token = cut(rows, page, alerts.key_of)
        return pb.ListAlertsResponse(alerts=map(messages.alert_of, shown), next_page_token=token)

    async def WatchAlerts(
        self, request: pb.WatchAlertsRequest, context: Context
    ) -> AsyncIterator[Alert]:
        """Send the alerts that fire, then each as it changes."""
        project = names.project_of(request.parent)
        seen = 0
        while True:
            async with self._database.read() as transaction:
                rows = await alerts.changed_since(transaction, project, seen, request.model)
            for row in rows:
                if seen or row.state == alerts.FIRING:
                    yield messages.alert_of(row)
            seen = max([seen, *(row.change for row in rows)])
            await asyncio.sleep(LOOK_EVERY_S)

    async def AcknowledgeAlert(
        self, request: pb.AcknowledgeAlertRequest, context: Context
    ) -> Alert:
        ids = names.parse(ALERT, request.name, field="name")
        principal = current_call().principal
        async with self._database.transaction() as transaction:
            row = await alerts.change(
                transaction,
                ids["project"],
                ids["alert"],
                acknowledged_by=principal.on_behalf_of or principal.subject,
            )
        return messages.alert_of(row)

    async def ListActions(
        self, request: pb.ListActionsRequest, context: Context
    ) -> pb.ListActionsResponse:
        ids, page = names.parse(MODEL, request.model, field="model"), page_of(request, int)
        state = STATE_NAMES.get(request.state, "")
        async with self._database.read() as transaction:
            rows = await actions.page(transaction, **ids, page=page, state=state)
        shown, token = cut(rows, page, lambda row: row.position)
        return pb.ListActionsResponse(actions=map(action_of, shown), next_page_token=token)

    async def RetryAction(self, request: pb.RetryActionRequest, context: Context) -> Action:
        ids = names.parse(MODEL, request.model, field="model")
        async with self._database.transaction() as transaction:
            row = await actions.revived(
                transaction, **ids, prediction_id=request.prediction_id, now_us=self._clock.now_us()
            )
        return action_of(row)

    async def RecordTruth(
        self, request: pb.RecordTruthRequest, context: Context
    ) -> pb.RecordTruthResponse:
        ids = names.parse(MODEL, request.model, field="model")
        now_us = self._clock.now_us()
        found = [_truth(each, now_us) for each in request.truths]
        async with self._database.transaction() as transaction:
            recorded = await truths.record(transaction, ids["project"], ids["model"], found)
        self._judge.wake()
        return pb.RecordTruthResponse(
            recorded=recorded.new, duplicates=recorded.duplicates, corrected=recorded.corrected
        )

    async def RecordOutcomes(
        self, request: pb.RecordOutcomesRequest, context: Context
    ) -> pb.RecordOutcomesResponse:
        ids = names.parse(MODEL, request.model, field="model")
        now_us = self._clock.now_us()
        found = [outcome_of(each, ids["project"], now_us) for each in request.outcomes]
        async with self._database.transaction() as transaction:
            recorded = await outcomes.record(
                transaction, ids["project"], ids["model"], found, now_us
            )
        return recorded_of(recorded)

    async def SumOutcomes(self, request: pb.SumOutcomesRequest, context: Context) -> OutcomeSums:
        ids = names.parse(MODEL, request.model, field="model")
        question = question_of(request, self._clock.now_us())
        async with self._database.read() as transaction:
            found = await outcomes.summed(transaction, ids["project"], ids["model"], question)
        return sums_of(found, question.as_of_us)

    async def CompareShadow(
        self, request: pb.CompareShadowRequest, context: Context
    ) -> ShadowComparison:
        ids = names.parse(MODEL, request.model, field="model")
        pairing = Pairing(
            request.candidate_version, request.baseline_version, request.threshold or EVEN
        )
        found = await self._shadows.compare(ids["project"], ids["model"], request.rollout, pairing)
        return messages.comparison_of(found)

    async def ListPredictions(
        self, request: pb.ListPredictionsRequest, context: Context
    ) -> pb.ListPredictionsResponse:
        ids, page = names.parse(MODEL, request.model, field="model"), page_of(request, int)
        async with self._database.read() as transaction:
            rows = await predictions.page(
                transaction,
                ids["project"],
                ids["model"],
                page,
                subject=request.subject,
                prediction_id=request.prediction_id,
            )
        shown, token = cut(rows, page, lambda row: row.position)
        return pb.ListPredictionsResponse(
            predictions=map(messages.prediction_of, shown), next_page_token=token
        )


def _truth(given: pb.Truth, now_us: int) -> Truth:
    known_us = to_us(given.known_at, "truths.known_at") if given.HasField("known_at") else now_us
    return Truth(given.subject, given.label, known_us)


def _bound(request: pb.GetQualityRequest, field: str, missing: int) -> int:
    time: Timestamp = getattr(request, field)
    return to_us(time, field) if request.HasField(field) else missing  # pyright: ignore[reportArgumentType]


def _length_us(row: Any, model: str) -> int:
    if row is None:
        raise FailedPrecondition(
            "MODEL_NOT_WATCHED", f"no policy says what a window of {model} is", {"model": model}
        )
    return policies.parsed(row.document).spec.window.length


def _preview(given: MonitorPolicy, found: policy.Monitor, data: dict[str, Any]) -> MonitorPolicy:
    return MonitorPolicy(
        name=given.name,
        document=given.document,
        document_hash=documents.hash_of(data),
        model=found.spec.model,
        owner=found.owner,
        on_call=found.on_call,
    )
