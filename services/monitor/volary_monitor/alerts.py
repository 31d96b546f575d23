"""Raise, renew and resolve alerts: a row, and an event in the same transaction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from volary.events.v1.event_pb2 import AlertEvent, Event
from volary_kit import outbox, streams
from volary_kit.clock import Clock
from volary_kit.database import Transaction
from volary_kit.timestamps import from_us

from volary_monitor.domain import alerting
from volary_monitor.domain.alerting import Hysteresis, Kind, Step
from volary_monitor.domain.policy import AlertRule, Monitor
from volary_monitor.domain.windows import Span
from volary_monitor.prediction_log import day_of
from volary_monitor.store import alerts

Row = sa.Row[Any]
MICROS = 1_000_000


@dataclass(frozen=True)
class Judgement:
    """What a window says to the alert of one kind; `is_bad` None says nothing."""

    kind: Kind
    span: Span
    is_bad: bool | None
    targets: list[str]
    value: float
    threshold: float
    summary: str


class Alerting:
    """Keeps the alerts of judged windows."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def settle(
        self,
        transaction: Transaction,
        project: str,
        policy: Monitor,
        judgement: Judgement,
        history: list[bool],
    ) -> Step:
        """Do what the windows so far ask for; `history` is newest first, this window included."""
        model, kind = policy.spec.model, judgement.kind
        firing = await alerts.firing(transaction, project, model, kind)
        retrains = await self._may_retrain(transaction, project, policy, judgement)
        step = alerting.step(
            alerting.streaks(history),
            hysteresis_of(policy, kind),
            is_firing=firing is not None,
            is_renewable=retrains,
        )
        if step in (Step.RENEW, Step.RESOLVE) and firing is not None:
            await self._resolve(transaction, project, firing)
        if step in (Step.RAISE, Step.RENEW):
            await self._raise(transaction, project, policy, judgement, retrains=retrains)
        if step is Step.KEEP and firing is not None:
            seen = _seen(judgement)
            await alerts.change(transaction, project, firing.alert, **seen)
        return step

    async def _may_retrain(
        self, transaction: Transaction, project: str, policy: Monitor, judgement: Judgement
    ) -> bool:
        retrain = policy.spec.retrain
        if retrain is None or not rule_of(policy, judgement.kind).retrain:
            return False
        last_us = await alerts.last_retrain_us(transaction, project, policy.spec.model)
        return alerting.may_retrain(last_us, judgement.span.end_us, retrain.cooldown)

    async def _raise(
        self,
        transaction: Transaction,
        project: str,
        policy: Monitor,
        judgement: Judgement,
        *,
        retrains: bool,
    ) -> None:
        training = policy.spec.retrain.training if policy.spec.retrain else ""
        row = await alerts.add(
            transaction,
            project=project,
            alert=alert_id(policy.name, judgement),
            model=policy.spec.model,
            kind=judgement.kind,
            severity=rule_of(policy, judgement.kind).severity,
            triggers_retrain=retrains,
            training=training if retrains else "",
            owner=policy.owner,
            on_call=policy.on_call,
            raise_us=self._clock.now_us(),
            window_start_us=judgement.span.start_us,
            window_end_us=judgement.span.end_us,
            **_seen(judgement),
        )
        await _publish(transaction, row)

    async def _resolve(self, transaction: Transaction, project: str, firing: Row) -> None:
        row = await alerts.change(
            transaction,
            project,
            firing.alert,
            state=alerts.RESOLVED,
            resolve_us=self._clock.now_us(),
        )
        await _publish(transaction, row)


def _seen(judgement: Judgement) -> dict[str, Any]:
    return {
        "targets": judgement.targets,
        "value": judgement.value,
        "threshold": judgement.threshold,
        "summary": judgement.summary,
    }


def alert_id(policy: str, judgement: Judgement) -> str:
    """Return the id of the alert that a window raises: the same each time it is judged."""
    seconds = judgement.span.end_us // MICROS % 86_400
    return f"{policy}.{judgement.kind}.{day_of(judgement.span.end_us)}.{seconds}"


def rule_of(policy: Monitor, kind: Kind) -> AlertRule:
    """Return how bad an alert of a kind is."""
    found = policy.spec.alerts
    rules: dict[Kind, AlertRule] = {
        "drift": found.drift,
        "score_drift": found.score_drift,
        "quality": found.quality,
        "label_delay": found.label_delay,
        "volume": found.volume,
    }
    return rules[kind]


def hysteresis_of(policy: Monitor, kind: Kind) -> Hysteresis:
    """Return how many windows in a row raise and resolve an alert of a kind."""
    spec = policy.spec
    rule = spec.quality if kind in ("quality", "label_delay") else spec.drift
    return Hysteresis(rule.consecutive_windows, rule.resolve_windows)


async def _publish(transaction: Transaction, row: Row) -> None:
    found = AlertEvent(
        alert=f"projects/{row.project}/alerts/{row.alert}",
        model=row.model,
        kind=row.kind,
        severity=row.severity,
        state=row.state,
        target=", ".join(row.targets),
        value=row.value,
        threshold=row.threshold,
        summary=row.summary,
        window_start=from_us(row.window_start_us),
        window_end=from_us(row.window_end_us),
        triggers_retrain=row.triggers_retrain,
        training=row.training,
    )
    instant = from_us(row.window_end_us)
    event = Event(project=row.project, event_time=instant, known_at=instant, alert=found)
    await outbox.add(transaction, streams.ALERTS, event)
