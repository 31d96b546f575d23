"""The story: a first version, live traffic, a better version by itself, a bad one sent back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from temporalio.client import Client as TemporalClient
from temporalio.client import WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode
from volary.features.v1.features_service_pb2 import MaterialiseRequest, MaterialiseResponse
from volary.monitor.v1.monitor_pb2 import ALERT_STATE_FIRING, Alert
from volary.monitor.v1.monitor_service_pb2 import WatchAlertsRequest
from volary_client import AsyncClient
from volary_client.values import timestamp_of
from volary_workflows.identifiers import retrain_workflow_id
from volary_workflows.retrain.messages import Outcome, Retrain, RetrainStatus
from volary_workflows.retrain.messages import Stage as Stages
from volary_workflows.rollout.messages import RolloutStatus, State
from volary_workflows.starting import rollout_handle, start_retrain

from volary_cli.demo.declared import DemoSpec, Slice
from volary_cli.demo.faults import armed
from volary_cli.demo.stage import Stage
from volary_cli.demo.traffic import Replay
from volary_cli.launcher.folder import MeshFolder

LOOK_EVERY_S = 0.25
TELL_EVERY_S = 1.0  # a query replays nothing but is a workflow task all the same
Handle = WorkflowHandle[Any, RetrainStatus]


class StoryError(Exception):
    """Something that should have come true did not; the text says what and where to look."""


@dataclass
class Story:
    """Tells the demo against a running mesh; every step must come true."""

    spec: DemoSpec
    part: Slice
    client: AsyncClient
    temporal: TemporalClient
    folder: MeshFolder
    components: Sequence[Mapping[str, Any]]
    stage: Stage
    replay: Replay
    retrains: list[RetrainStatus] = field(default_factory=list)
    cause: str = ""
    _doing: str = ""

    async def tell(self) -> None:
        """Tell it; raises StoryError when something does not come true."""
        with self.stage.live(self._describe):
            loading = asyncio.create_task(self.replay.load())
            first = await self._first_version()
            await self._materialise()
            await loading
            with self.replay.serving() as playing:
                await self._beside(playing, self._second_version(first))
                await self._beside(playing, self._third_version())
            await playing

    async def _beside(self, playing: asyncio.Task[None], act: Any) -> None:
        """Do an act while the world is played; if the playing breaks, the act ends too."""
        acting = asyncio.ensure_future(act)
        await asyncio.wait({playing, acting}, return_when=asyncio.FIRST_COMPLETED)
        if not acting.done():
            acting.cancel()
            await playing
            raise StoryError("the declared world ended before the story did")
        await acting

    async def _first_version(self) -> int:
        self._say("[bold]learn[/]: pull, build the training set, train, register")
        retrain = Retrain(
            self.spec.training,
            trigger="manual",
            until_us=_us(self.part.train_until),
            reason="the first version",
            requested_by="demo",
        )
        handle = await start_retrain(self.temporal, retrain, cause="demo-first")
        return (await self._promoted(handle)).version

    async def _materialise(self) -> None:
        self._say("load the online state of the features")
        request = MaterialiseRequest(
            feature_set=self.client.name("featureSets", self.spec.feature_set),
            known_until=timestamp_of(self.part.train_until),
        )
        operation = await self.client.features.Materialise(request)
        done = await self.client.wait(operation, MaterialiseResponse)
        self.stage.say(f"{done.events:,} events of {done.entities:,} entities are online")

    async def _second_version(self, first: int) -> None:
        self._say(f"[bold]live traffic[/] through Envoy: version {first} answers")
        alert = await self._alert_or_schedule()
        if alert is None:
            self.cause = "schedule"
            self._say("no alert asked for it: the schedule starts a retrain")
            until = self.replay.tally.until or self.part.train_until
            retrain = Retrain(
                self.spec.training,
                trigger="schedule",
                until_us=_us(until),
                reason="the schedule is due",
            )
            handle = await start_retrain(self.temporal, retrain, cause="demo-schedule")
        else:
            self.cause = "alert"
            self._say(f"[yellow]alert[/] {alert.summary}; it starts a retrain")
            handle = await self._started_by(alert)
        await self._promoted(handle)

    async def _alert_or_schedule(self) -> Alert | None:
        """Return the alert that asks for a retrain, None when event time runs past the limit."""
        alerts = asyncio.ensure_future(self._alert())
        patience = timedelta(microseconds=self.spec.retrain.alert_within)
        overdue = asyncio.ensure_future(self.replay.reached(self.part.train_until + patience))
        await asyncio.wait({alerts, overdue}, return_when=asyncio.FIRST_COMPLETED)
        overdue.cancel()
        if alerts.done():
            return await alerts
        alerts.cancel()
        return None

    async def _alert(self) -> Alert:
        request = WatchAlertsRequest(parent=self.client.name(), model=self.spec.model)
        async for alert in self.client.monitor.WatchAlerts(request):
            if alert.state == ALERT_STATE_FIRING and alert.triggers_retrain:
                return alert
        raise StoryError("the monitor ended its stream of alerts")

    async def _started_by(self, alert: Alert) -> Handle:
        cause = alert.name.rpartition("/")[2]
        workflow_id = retrain_workflow_id(self.client.project, self.spec.training, cause)
        handle = self.temporal.get_workflow_handle(workflow_id, result_type=RetrainStatus)
        async with asyncio.timeout(30):
            while not await self._exists(handle):  # noqa: ASYNC110 - Temporal tells nobody
                await asyncio.sleep(LOOK_EVERY_S)
        return handle

    async def _exists(self, handle: Handle) -> bool:
        try:
            await handle.describe()
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return False
            raise
        return True

    async def _third_version(self) -> None:
        version = self.retrains[-1].version + 1
        fault = self.spec.fault
        self._say(
            f"[bold]a bad release[/]: version {version} is trained well and served badly"
            f" ({fault.fail_share:.0%} fail, {fault.slow_share:.0%} are slow)"
        )
        self.replay.faulty.add(version)
        until = self.replay.tally.until or self.part.train_until
        retrain = Retrain(
            self.spec.training,
            trigger="manual",
            until_us=_us(until),
            reason="the bad release of the demo",
            requested_by="demo",
        )
        handle = await start_retrain(self.temporal, retrain, cause="demo-bad")
        following = asyncio.ensure_future(self._followed(handle))
        # shadow would have caught it before it hurt anybody: it breaks once it serves
        await self._in_canary(version, following)
        if not following.done():
            async with armed(self.folder, self.components, self.spec.model, version, fault):
                self.stage.say(f"[red]the fault is armed[/] for version {version}")
                await asyncio.wait({following})
        ended = await following
        state = ended.rollout.state if ended.rollout else ""
        if ended.version != version or state != "ROLLED_BACK":
            raise StoryError(
                f"version {ended.version} should have been rolled back; it is {state or 'not'}"
                f" {ended.outcome}: {ended.reason}"
            )
        self.stage.say(f"[green]rolled back[/] version {version}: {ended.reason}")

    async def _in_canary(self, version: int, following: asyncio.Future[RetrainStatus]) -> None:
        """Return when a version's rollout is in its canary, or has ended without."""
        while not following.done():
            status = await self._rollout()
            if status and status.candidate == version and status.state == State.CANARY:
                return
            is_near = status is not None and status.candidate == version
            await asyncio.wait({following}, timeout=LOOK_EVERY_S if is_near else TELL_EVERY_S)

    async def _rollout(self) -> RolloutStatus | None:
        """Return how far the model's rollout is, None before the first has begun."""
        handle = rollout_handle(self.temporal, self.client.project, self.spec.model)
        try:
            return await handle.query("status", result_type=RolloutStatus)
        except RPCError:
            return None

    async def _promoted(self, handle: Handle) -> RetrainStatus:
        ended = await self._followed(handle)
        if ended.outcome != Outcome.PROMOTED:
            raise StoryError(
                f"version {ended.version} should have been promoted;"
                f" {ended.outcome}: {ended.reason}"
            )
        gate = f" (gate: {'; '.join(ended.gate.reasons)})" if ended.gate else ""
        self.stage.say(f"[green]promoted[/] version {ended.version}{gate}")
        return ended

    async def _followed(self, handle: Handle) -> RetrainStatus:
        """Return how a retrain ends; tells each stage and state on the way."""
        result = asyncio.ensure_future(handle.result())
        told: set[str] = set()
        while not result.done():
            status = await handle.query("status", result_type=RetrainStatus)
            self._tell_new(status, told)
            is_learning = status.stage != Stages.ROLLING_OUT
            self._pace(is_learning=is_learning)
            if not is_learning:
                await self._tell_rollout(status.version, told)
            await asyncio.wait({result}, timeout=TELL_EVERY_S)
        self._pace(is_learning=False)
        self.retrains.append(await result)
        return self.retrains[-1]

    def _pace(self, *, is_learning: bool) -> None:
        world = self.spec.replay
        self.replay.calls_per_s = (
            world.calls_per_s_while_learning if is_learning else world.calls_per_s
        )

    def _tell_new(self, status: RetrainStatus, told: set[str]) -> None:
        self._doing = f"{status.stage.lower().replace('_', ' ')} version {status.version or '…'}"
        if status.version and "version" not in told:
            told.add("version")
            self.stage.say(
                f"registered version {status.version} from {status.rows:,} rows:"
                f" auc {status.metrics.get('auc', 0):.3f}"
            )

    async def _tell_rollout(self, version: int, told: set[str]) -> None:
        """Tell each step of a version's rollout, once it has begun."""
        status = await self._rollout()
        if status is None:
            return
        step = f"{status.state} {status.step} at {status.weight / 100:g} %"
        if status.candidate == version:
            self._doing = f"rollout of version {version}: {step}"
            if step not in told:
                told.add(step)
                self.stage.say(f"  {self._doing}")

    def _say(self, text: str) -> None:
        self._doing = ""
        self.stage.say(text)

    def _describe(self) -> str:
        tally = self.replay.tally
        if tally.until is None:
            return self._doing or "…"
        shares = " ".join(f"v{v} {n:,}" for v, n in sorted(tally.answered.items()))
        return (
            f"{tally.until:%Y-%m-%d %H:%M}  {tally.total:,} calls  {shares}"
            f"  failed {tally.failed:,}  {self._doing}"
        )


def _us(instant: datetime) -> int:
    return (instant - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
