"""One rollout after the other, each held at a state while a process is lost there."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from temporalio.client import Client, WorkflowHandle
from temporalio.service import RPCError
from volary_kit.testing import eventually
from volary_workflows.failpoints import DONE, HELD
from volary_workflows.judge.inputs import Guard
from volary_workflows.rollout.messages import (
    ApprovalPolicy,
    Command,
    RolloutSpec,
    RolloutStatus,
    ShadowStage,
    State,
    Step,
)
from volary_workflows.rollout.traffic import BEGUN_AGAIN
from volary_workflows.starting import start_rollout, told

from tests.chaos.callers import CALLERS, Callers, Tally
from tests.chaos.mesh import MODEL, VERSIONS, RolloutMesh, rollout_mesh
from tests.chaos.watcher import Seen, Watcher

ADA = Command("principals/ada", "go on")
WITHIN_S = 120.0
CALL_S = 5.0
# a candidate with fewer than one error in five passes after some 25 calls: it takes a second
GUARD = Guard(ceiling=0.2)
SPEC = RolloutSpec(
    model=MODEL,
    candidate=0,
    shadow=ShadowStage(1.0, 0.3, 10),
    steps=[Step(3_000, 0.3, 10), Step(6_000, 0.3, 10)],
    bake_s=0.3,
    guards=[GUARD],
    poll_s=0.2,
    max_extensions=1_000,
    requested_by="principals/ada",
)
MANUAL = ApprovalPolicy("manual", ["principals/ada"], valid_s=0.001)  # earlier ones are over


@dataclass(frozen=True)
class Stand:
    """A state, and what holds a rollout there: an activity's failpoint, or a person's word.

    Neither of them: time alone, `after_s`. `aborted` makes it turn back from its canary first.
    """

    name: str
    state: State
    point: str = ""
    word: str = ""
    aborted: bool = False
    after_s: float = 3_600.0


STANDS = (
    Stand("PENDING", State.PENDING, word="skip_step"),
    Stand("VALIDATING", State.VALIDATING, "check_rollout"),
    Stand("AWAITING_APPROVAL", State.AWAITING_APPROVAL, word="approve"),
    Stand("LOADING", State.LOADING, "load_version" + DONE),
    Stand("STAGING", State.STAGING, "stage_version" + DONE),
    Stand("SHADOW", State.SHADOW, "judge_rollout.shadow"),
    Stand("CANARY", State.CANARY, "judge_rollout.canary"),
    Stand("PROGRESSING", State.PROGRESSING, "judge_rollout.60"),
    Stand("BAKING", State.BAKING, "judge_rollout.bake"),
    # written, and the workflow has not heard of it
    Stand("PROMOTING", State.BAKING, "set_traffic.promote" + DONE),
    Stand("ROLLING_BACK", State.ROLLING_BACK, "set_traffic.rollback" + DONE, aborted=True),
    Stand("UNLOADING", State.ROLLING_BACK, "unload_version", aborted=True),
)
BY_TIME = Stand("PENDING, a timer", State.PENDING, after_s=20.0)
FROZEN = "worker frozen"
RESUMED = "worker resumed"  # frozen as it unloads, thawed when the next rollout has loaded the same
NOTHING = "nothing"
LOST = (NOTHING, "worker", FROZEN, "temporal", "gateway", "envoy", "inference")
ENGINES = ("postgres", "redis")
PROCESS = {"worker": "workflows", FROZEN: "workflows", "inference": "inference-0"}
PROMOTED_WRITES = 5  # shadow, canary, 60, bake, promote
ABORTED_WRITES = 3  # shadow, canary, rollback


@dataclass(frozen=True)
class Loss:
    """A process that is lost while a rollout stands somewhere."""

    stand: Stand
    process: str


@dataclass(frozen=True)
class Begun:
    """What a rollout begins from, and when."""

    baseline: int
    candidate: int
    generation: int
    at_s: float


@dataclass
class Outcome:
    """How a rollout went in which processes were lost; `writes` are of traffic, by anybody."""

    losses: Sequence[Loss]
    status: RolloutStatus
    seconds: float
    back_s: float
    writes: int
    generation: int
    production: int
    promised: int
    calls: Tally
    seen: Seen

    @property
    def expected(self) -> str:
        """How it would have ended."""
        return State.ABORTED if self.is_aborted else State.PROMOTED

    @property
    def is_aborted(self) -> bool:
        """True when somebody told it to turn back."""
        return any(loss.stand.aborted for loss in self.losses)

    @property
    def begun_again(self) -> int:
        """How many steps were written anew because records were lost, as the rollout says."""
        return sum(BEGUN_AGAIN in each.reason for each in self.status.history)

    def times_lost(self, *processes: str) -> int:
        """Return how often one of the processes was lost."""
        return sum(loss.process in processes for loss in self.losses)

    @property
    def problems(self) -> list[str]:
        """What is wrong, in words; empty when every promise held."""
        return list(_problems(self))


class Rollouts:
    """Runs rollouts of one mesh under traffic, one after the other."""

    def __init__(
        self, mesh: RolloutMesh, temporal: Client, callers: Callers, watcher: Watcher
    ) -> None:
        self._mesh = mesh
        self._temporal = temporal
        self._callers = callers
        self._watcher = watcher
        self._aborted = False

    async def run(self, *losses: Loss) -> Outcome:
        """Run one rollout; where it stands, lose a process and let it go on meanwhile."""
        begun = await self._begin()
        handle = await self._start([loss.stand for loss in losses], begun.candidate)
        back_s = 0.0
        for loss in losses:
            await self._until_held(loss.stand, handle)
            lose = self._freeze if loss.process == FROZEN else self._kill
            component = PROCESS.get(loss.process, loss.process)
            back_s = max(back_s, await lose(component, loss.stand, handle))
        return await self._outcome(losses, begun, await self._ended(handle), back_s)

    async def resume(self) -> Outcome:
        """Thaw a worker that was to unload when the next rollout has loaded the same version."""
        unloading, staging = STANDS[-1], next(each for each in STANDS if each.name == "STAGING")
        candidate = (await self._begin()).candidate
        handle = await self._start([unloading], candidate)
        await self._until_held(unloading, handle)
        began_s = time.monotonic()
        before = self._mesh.signal(PROCESS[FROZEN], signal.SIGSTOP)
        second = await self._mesh.second_worker()
        await self._release(unloading, handle)
        await self._ended(handle)
        begun = await self._begin()
        following = await self._start([staging], candidate)
        await self._until_held(staging, following)
        await self._thaw(PROCESS[FROZEN], before)
        back_s = time.monotonic() - began_s
        await self._release(staging, following)
        status = await self._ended(following)
        await self._mesh.supervisor.remove(second)
        return await self._outcome([Loss(staging, RESUMED)], begun, status, back_s)

    async def _begin(self) -> Begun:
        baseline = await self._mesh.settled()
        generation = (await self._mesh.now()).generation
        await self._callers.turn()
        self._watcher.turn()
        self._aborted = False
        return Begun(baseline, sum(VERSIONS) - baseline, generation, time.monotonic())

    async def _start(self, stands: Sequence[Stand], candidate: int) -> WorkflowHandle:
        for stand in stands:
            self._arm(stand)
        return await start_rollout(self._temporal, _spec(stands, candidate))

    async def _outcome(
        self, losses: Sequence[Loss], begun: Begun, status: RolloutStatus, back_s: float
    ) -> Outcome:
        seconds = time.monotonic() - begun.at_s
        production = await self._mesh.settled()
        generation = (await self._mesh.now()).generation
        is_promoted = status.state == State.PROMOTED
        return Outcome(
            losses=losses,
            status=status,
            seconds=seconds,
            back_s=back_s,
            writes=generation - begun.generation,
            generation=generation,
            production=production,
            promised=begun.candidate if is_promoted else begun.baseline,
            calls=await self._callers.turn(),
            seen=self._watcher.turn(),
        )

    async def _kill(self, component: str, stand: Stand, handle: WorkflowHandle) -> float:
        """Kill, and let the rollout go on while the process is away."""
        if component == NOTHING:
            await self._release(stand, handle)
            return 0.0
        began_s = time.monotonic()
        before = self._mesh.signal(component, signal.SIGKILL)
        releasing = asyncio.ensure_future(self._release(stand, handle))
        await self._mesh.back(component, before)
        back_s = time.monotonic() - began_s
        await releasing
        return back_s

    async def _freeze(self, component: str, stand: Stand, handle: WorkflowHandle) -> float:
        """Freeze, let another one end the rollout, thaw: what comes back late leaves by itself."""
        began_s = time.monotonic()
        before = self._mesh.signal(component, signal.SIGSTOP)
        second = await self._mesh.second_worker()
        await self._release(stand, handle)
        await self._ended(handle)
        await self._thaw(component, before)
        await self._mesh.supervisor.remove(second)
        return time.monotonic() - began_s

    async def _thaw(self, component: str, before: int) -> None:
        self._mesh.signal(component, signal.SIGCONT)
        self._mesh.signal(component, signal.SIGTERM)  # it ends what it had in hand
        await self._mesh.back(component, before)

    def _file(self, stand: Stand) -> Path:
        return self._mesh.failpoints / f"{MODEL}.{stand.point}"

    def _marker(self, stand: Stand) -> Path:
        return self._mesh.failpoints / f"{MODEL}.{stand.point}{HELD}"

    def _arm(self, stand: Stand) -> None:
        if stand.point:
            self._marker(stand).unlink(missing_ok=True)
            self._file(stand).touch()

    async def _until_held(self, stand: Stand, handle: WorkflowHandle) -> None:
        if stand.aborted and not self._aborted:
            await self._until_state(handle, State.CANARY)
            await self._told(handle, "abort")
            self._aborted = True
        if not stand.point:
            await self._until_state(handle, stand.state)
            return

        async def is_held() -> bool:
            return self._marker(stand).exists()

        await eventually(is_held, within_s=WITHIN_S, what=f"a rollout held at {stand.name}")
        status = await handle.query("status", result_type=RolloutStatus)
        assert status.state == stand.state, status

    async def _until_state(self, handle: WorkflowHandle, state: State) -> None:
        async def is_there() -> bool:
            try:
                status = await handle.query("status", result_type=RolloutStatus)
            except RPCError:
                return False
            return status.state == state

        await eventually(is_there, within_s=WITHIN_S, what=f"a rollout that is {state}")

    async def _release(self, stand: Stand, handle: WorkflowHandle) -> None:
        if stand.point:
            self._file(stand).unlink()
        elif stand.word:
            await self._told(handle, stand.word)

    async def _told(self, handle: WorkflowHandle, word: str) -> None:
        """Say a word until it is heard: Temporal or the worker may be away."""
        command = replace(ADA, request_id=f"{word}-of-{handle.first_execution_run_id}")
        await told(handle, word, command, RolloutStatus, within_s=WITHIN_S)

    async def _ended(self, handle: WorkflowHandle) -> RolloutStatus:
        async def ended() -> RolloutStatus | None:
            try:
                async with asyncio.timeout(CALL_S):
                    return await handle.result()
            except (RPCError, TimeoutError):
                return None

        status = await eventually(ended, within_s=WITHIN_S, what="the end of a rollout")
        assert status is not None
        return status


@asynccontextmanager
async def rollouts(folder: Path, port_base: int) -> AsyncIterator[Rollouts]:
    """Run a mesh with callers and an observer for a block."""
    async with rollout_mesh(folder, port_base) as mesh:
        callers, watcher = Callers(mesh.edge, mesh.api_key), Watcher(mesh)
        async with callers.calling(), watcher.watching():
            yield Rollouts(mesh, await mesh.temporal(), callers, watcher)


def _spec(stands: Sequence[Stand], candidate: int) -> RolloutSpec:
    states = {stand.state for stand in stands}
    waits_s = [stand.after_s for stand in stands if stand.state == State.PENDING]
    canary, last = SPEC.steps
    if any(stand.aborted for stand in stands):
        canary = replace(canary, min_duration_s=600.0)  # it waits there for the word
    return replace(
        SPEC,
        candidate=candidate,
        start_at_s=time.time() + waits_s[0] if waits_s else 0.0,
        approval=MANUAL if State.AWAITING_APPROVAL in states else SPEC.approval,
        steps=[canary, last],
    )


def _problems(seen: Outcome) -> Iterator[str]:
    status, calls, watched = seen.status, seen.calls, seen.seen
    if status.state not in (seen.expected, State.ROLLED_BACK):
        yield f"it ended {status.state} ({status.reason})"
    if seen.production != seen.promised:
        yield f"version {seen.production} serves, not {seen.promised}"
    if status.generation != seen.generation:
        yield f"the rollout knows generation {status.generation} of {seen.generation}"
    if status.state == seen.expected:
        promised = ABORTED_WRITES if seen.is_aborted else PROMOTED_WRITES
        promised += seen.begun_again
        if seen.writes != promised:
            yield f"{seen.writes} writes of traffic, not {promised}"
    yield from (f"a call failed: {text}" for text in calls.failed)
    most = 2 * CALLERS * seen.times_lost("envoy")  # each caller had one in flight
    if calls.hurt > most:
        yield f"{calls.hurt} calls were hurt, not at most {most}: {dict(calls.broken)}"
    if not calls.calls or not watched.looks or not watched.attempts:
        yield "nobody called, or nobody watched"
    yield from watched.unready
    yield from watched.bare
