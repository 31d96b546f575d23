"""Deliver the actions of decisions: each once, to a web hook or as the start of a workflow.

The row that says what is to be done is written with the prediction itself; this tries until it is
taken, or has been refused too often. A workflow's id is the prediction's, so it starts once; a web
hook is told the prediction's id as its idempotency key, and may be told again when a process dies
between its answer and the note that it was given.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from prometheus_client import Counter, Gauge
from temporalio.client import Client
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError
from volary_kit.clock import Clock
from volary_kit.database import Database
from volary_kit.errors import FailedPrecondition, Unavailable, VolaryError
from volary_kit.webhooks import Webhooks

from volary_monitor.domain.actions import Decided, Target, delay_us
from volary_monitor.store import actions

log = logging.getLogger(__name__)
LOOK_EVERY_S = 1.0
RETRY_S = 1.0
BATCH = 32  # at once: a slow hook must not hold up the others for long
ATTEMPTED = Counter(
    "volary_monitor_action_attempts_total", "Attempts to deliver an action", ["outcome"]
)
HELD = Gauge("volary_monitor_actions", "Actions that wait, or were given up", ["state"])


@dataclass(frozen=True)
class Delivering:
    """How often an action is tried, and how long an attempt has."""

    attempts: int
    lease_us: int


class ActionDelivery:
    """Delivers what is due, for ever."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        webhooks: Webhooks,
        temporal: Callable[[], Awaitable[Client]],
        may_start: Collection[str],
        how: Delivering,
    ) -> None:
        self._database = database
        self._clock = clock
        self._webhooks = webhooks
        self._temporal = temporal
        self._may_start = frozenset(may_start)
        self._how = how
        self._news = asyncio.Event()

    def wake(self) -> None:
        """Look at once."""
        self._news.set()

    async def run(self) -> None:
        """Deliver, for ever."""
        while True:
            self._news.clear()
            try:
                while await self.step():
                    pass
                await self._measure()
            except VolaryError as error:
                log.warning("actions wait: %s", error.reason)
                await asyncio.sleep(RETRY_S)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._news.wait()

    async def step(self) -> int:
        """Try what is due, at most a batch; return how many that were."""
        async with self._database.transaction() as transaction:
            now_us = self._clock.now_us()
            rows = await actions.claim(transaction, now_us, self._how.lease_us, BATCH)
        await asyncio.gather(*(self._deliver(row) for row in rows))
        return len(rows)

    async def _deliver(self, row: actions.Row) -> None:
        problem, is_final = "", False
        try:
            async with asyncio.timeout(self._how.lease_us / 1e6):
                await self._told(row)
        except FailedPrecondition as error:
            problem, is_final = error.reason, True
        except VolaryError as error:
            problem = error.reason
        except TimeoutError:
            problem = "DEADLINE_EXCEEDED"
        await self._note(row, problem, is_final=is_final)

    async def _told(self, row: actions.Row) -> None:
        fields = Decided.__dataclass_fields__
        decided = Decided(**{name: getattr(row, name) for name in fields})
        target = Target(row.webhook, row.workflow, row.task_queue)
        if target.webhook:
            await self._webhooks.post(target.webhook, decided.told(), decided.prediction_id)
        else:
            await self._start(target, decided)

    async def _start(self, target: Target, decided: Decided) -> None:
        if target.name not in self._may_start:
            raise FailedPrecondition("WORKFLOW_NOT_ALLOWED", f"{target.name} is not allowed")
        client = await self._temporal()
        try:
            await client.start_workflow(
                target.workflow,
                decided.told(),
                id=decided.prediction_id,
                task_queue=target.task_queue,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            )
        except WorkflowAlreadyStartedError:
            log.info("the workflow %s was started before", decided.prediction_id)
        except RPCError as error:
            text = "Temporal did not start the workflow"
            raise Unavailable("TEMPORAL_UNAVAILABLE", text) from error

    async def _note(self, row: actions.Row, problem: str, *, is_final: bool) -> None:
        now_us = self._clock.now_us()
        is_dead = bool(problem) and (is_final or row.attempts >= self._how.attempts)
        async with self._database.transaction() as transaction:
            if problem and not is_dead:
                due_us = now_us + delay_us(row.attempts)
                await actions.put_off(transaction, row.position, problem, due_us)
            else:
                state = actions.DEAD if is_dead else actions.DONE
                await actions.settle(transaction, row.position, state, problem, now_us)
        ATTEMPTED.labels("dead" if is_dead else "failed" if problem else "delivered").inc()
        if is_dead:
            log.error("the action of %s is given up: %s", row.prediction_id, problem)

    async def _measure(self) -> None:
        async with self._database.read() as transaction:
            found: dict[str, Any] = await actions.counts(transaction)
        for state, count in found.items():
            HELD.labels(state).set(count)
