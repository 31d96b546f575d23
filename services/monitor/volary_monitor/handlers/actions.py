"""The action half of `volary.monitor.v1.MonitorService`: rows as protos."""

from __future__ import annotations

from volary.monitor.v1.monitor_pb2 import (
    ACTION_STATE_DEAD,
    ACTION_STATE_DELIVERED,
    ACTION_STATE_WAITING,
    Action,
)
from volary_kit.timestamps import from_us

from volary_monitor.store.actions import DEAD, DONE, WAITING, Row

STATES = {
    WAITING: ACTION_STATE_WAITING,
    DONE: ACTION_STATE_DELIVERED,
    DEAD: ACTION_STATE_DEAD,
}
STATE_NAMES = {number: name for name, number in STATES.items()}


def action_of(row: Row) -> Action:
    """Return a stored action."""
    found = Action(
        prediction_id=row.prediction_id,
        model=row.model,
        version=row.version,
        action=row.action,
        reason_codes=row.reason_codes,
        score=row.score or 0.0,
        subject=row.subject,
        webhook=row.webhook,
        workflow=row.workflow,
        task_queue=row.task_queue,
        state=STATES[row.state],
        attempts=row.attempts,
        problem=row.problem,
        create_time=from_us(row.create_us),
    )
    if row.state == WAITING:
        found.next_attempt_time.CopyFrom(from_us(row.due_us))
    if row.settle_us is not None:
        found.settle_time.CopyFrom(from_us(row.settle_us))
    return found
