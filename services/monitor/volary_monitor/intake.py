"""What comes in by streams: predictions, truth, watermarks. Each event has its effect once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from volary.events.v1.event_pb2 import Event
from volary.values.v1.value_pb2 import Value
from volary_kit.clock import Clock
from volary_kit.database import Database, Transaction
from volary_kit.timestamps import to_us

from volary_monitor.domain.actions import Decided, target_of
from volary_monitor.domain.policy import Monitor
from volary_monitor.domain.truth import Scalar, Truth, truth_of
from volary_monitor.prediction_log import day_of
from volary_monitor.store import actions, policies, predictions, truths


class PredictionIntake:
    """The handler of `volary:predictions`."""

    def __init__(self, database: Database, clock: Clock, on_news: Callable[[], None]) -> None:
        self._database = database
        self._clock = clock
        self._on_news = on_news

    async def __call__(self, events: Sequence[Event]) -> None:
        """Store the predictions that are new, and queue them for the log."""
        found = {event.id: event for event in events if event.WhichOneof("payload") == "prediction"}
        if not found:
            return
        async with self._database.transaction() as transaction:
            new = await predictions.add(transaction, [prediction_row(e) for e in found.values()])
            if new:
                now_us = self._clock.now_us()
                rows = [_pending(found[key], place, now_us) for key, place in new.items()]
                await predictions.queue(transaction, rows)
                await _queue_actions(transaction, [found[key] for key in new], now_us)
        self._on_news()


class TruthIntake:
    """The handler of `volary:source_events`: joins records as truth by the declared policies."""

    def __init__(self, database: Database, on_news: Callable[[], None]) -> None:
        self._database = database
        self._on_news = on_news

    async def __call__(self, events: Sequence[Event]) -> None:
        """Store what turned out, and how far each source has told."""
        async with self._database.transaction() as transaction:
            watching = await policies.watching(transaction)
            for (project, model), found in _truths(events, watching).items():
                await truths.record(transaction, project, model, found)
            await _move_watermarks(transaction, events)
        self._on_news()


def prediction_row(event: Event) -> dict[str, Any]:
    """Return what is kept of a prediction beside the log; the score is its first output."""
    found = event.prediction
    return {
        "event_id": event.id,
        "project": event.project,
        "model": found.model,
        "prediction_id": found.prediction_id,
        "version": found.version,
        "tier": found.tier,
        "shadow": found.shadow,
        "subject": found.subject,
        "event_us": to_us(event.event_time),
        "schema_hash": found.schema_hash,
        "score": found.outputs[0] if found.outputs else None,
        "code": found.code,
        "trace_id": found.trace_id,
        "route": found.route,
    }


async def _queue_actions(transaction: Transaction, events: Sequence[Event], now_us: int) -> None:
    """Queue what the new predictions recommend, where a policy says where that goes."""
    advised = [event for event in events if _is_advice(event)]
    if not advised:
        return
    rules = {
        (project, each.spec.model): each.spec.actions
        for project, each in await policies.watching(transaction)
    }
    for event in advised:
        found = event.prediction
        target = target_of(rules.get((event.project, found.model), []), found.action)
        if target is not None:
            await actions.add(transaction, _decided(event), found.request_key, target, now_us)


def _is_advice(event: Event) -> bool:
    """Say whether somebody was told of an action: a copy's answer reached nobody."""
    found = event.prediction
    return bool(found.action) and not found.shadow and found.code == 0


def _decided(event: Event) -> Decided:
    found = event.prediction
    return Decided(
        prediction_id=found.prediction_id,
        project=event.project,
        model=found.model,
        version=found.version,
        action=found.action,
        reason_codes=list(found.reason_codes),
        score=found.outputs[0] if found.outputs else None,
        subject=found.subject,
        event_us=to_us(event.event_time),
    )


def _pending(event: Event, position: int, now_us: int) -> dict[str, Any]:
    event_us = to_us(event.event_time)
    return {
        "position": position,
        "project": event.project,
        "model": event.prediction.model,
        "day": day_of(event_us),
        "event_us": event_us,
        "since_us": now_us,
        "event": event.SerializeToString(),
    }


def _truths(
    events: Sequence[Event], watching: Sequence[tuple[str, Monitor]]
) -> dict[tuple[str, str], list[Truth]]:
    found: dict[tuple[str, str], list[Truth]] = defaultdict(list)
    for event in events:
        if event.WhichOneof("payload") != "source_record":
            continue
        fields = {name: _scalar(value) for name, value in event.source_record.record.fields.items()}
        for project, policy in watching:
            rule = policy.spec.truth
            if (project, rule.source) != (event.project, event.source_record.source):
                continue
            truth = truth_of(rule, fields, to_us(event.known_at))
            if truth is not None:
                found[project, policy.spec.model].append(truth)
    return found


async def _move_watermarks(transaction: Transaction, events: Sequence[Event]) -> None:
    newest: dict[tuple[str, str], int] = {}
    for event in events:
        if event.WhichOneof("payload") == "watermark":
            key = (event.project, event.watermark.source)
            newest[key] = max(newest.get(key, 0), to_us(event.watermark.watermark))
    for (project, source), watermark_us in sorted(newest.items()):
        await truths.move(transaction, project, source, watermark_us)


def _scalar(value: Value) -> Scalar:
    kind = value.WhichOneof("kind")
    if kind is None:
        return None
    if kind == "timestamp_value":
        return to_us(value.timestamp_value)
    return getattr(value, kind)
