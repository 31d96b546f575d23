"""`volary retrain ...`: pull, build, train, register, gate, roll out."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from volary_cli.commands.exits import CommandError, Exit
from volary_cli.commands.mesh import DataDir
from volary_cli.commands.output import AsJson, console, print_json, print_table, progress
from volary_cli.commands.session import Session

if TYPE_CHECKING:
    from volary_workflows.retrain.messages import RetrainStatus

app = typer.Typer(no_args_is_help=True, help="Train a new version and let it earn its place.")
Training = Annotated[str, typer.Argument(help="Training id.")]
POLL_S = 0.5
US_PER_S = 1_000_000


@app.command()
def start(
    training: Training,
    until: Annotated[
        datetime | None, typer.Option(help="See the world as it was known then, UTC.")
    ] = None,
    no_rollout: Annotated[
        bool, typer.Option("--no-rollout", help="Stop at a registered, gated version.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it has ended.")] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Start a retrain; with --wait exit status 5 when no new version came of it."""
    session = Session(data_dir)
    until_us = int(until.replace(tzinfo=UTC).timestamp() * US_PER_S) if until else 0
    cause = f"manual-{uuid.uuid4().hex[:12]}"

    async def run() -> tuple[str, RetrainStatus]:
        from volary_workflows.retrain.messages import Retrain
        from volary_workflows.starting import start_retrain

        retrain = Retrain(training, session.project, until_us=until_us, roll_out=not no_rollout)
        handle = await start_retrain(await session.temporal(), retrain, cause=cause)
        return handle.id, await (_ended(handle) if wait else _query(handle))

    workflow_id, found = asyncio.run(run())
    _print(workflow_id, found, as_json=as_json)
    if wait and found.outcome not in ("PROMOTED", "REGISTERED"):
        raise typer.Exit(Exit.REFUSED)


@app.command()
def schedule(
    training: Training,
    every: Annotated[str, typer.Option(help="An interval, such as 7d or 12h.")] = "",
    cron: Annotated[str, typer.Option(help="Or a cron expression in UTC: '0 3 * * 1'.")] = "",
    no_rollout: Annotated[
        bool, typer.Option("--no-rollout", help="Stop at a registered, gated version.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Retrain by a calendar, instead of what was set before.

    Example: `volary retrain schedule flights-delay --every 7d`. A time that comes while a retrain
    of the training runs, whatever started it, is left out.
    """
    session, every_s = Session(data_dir), _seconds(every)

    async def run() -> None:
        from volary_workflows.retrain.messages import Retrain
        from volary_workflows.scheduling import Calendar, schedule_retrain

        retrain = Retrain(
            training,
            session.project,
            reason="the schedule is due",
            requested_by=session.principal,
            roll_out=not no_rollout,
        )
        await schedule_retrain(await session.temporal(), retrain, Calendar(every_s, cron))

    asyncio.run(run())
    console.print(f"{training} is retrained {f'every {every}' if every else f'at {cron}'}")


@app.command()
def unschedule(training: Training, data_dir: DataDir = None) -> None:
    """Retrain by no calendar any more; what runs goes on."""
    session = Session(data_dir)

    async def run() -> None:
        from volary_workflows.scheduling import unschedule_retrain

        await unschedule_retrain(await session.temporal(), session.project, training)

    asyncio.run(run())
    console.print(f"{training} is retrained by no calendar")


def _seconds(text: str) -> float:
    from volary_kit.durations import parse_us

    try:
        return parse_us(text) / US_PER_S if text else 0.0
    except ValueError as error:
        raise CommandError(f"--every {error}") from error


@app.command()
def status(
    workflow_id: Annotated[str, typer.Argument(help="What `retrain start` printed.")],
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Show what a retrain has done so far."""
    session = Session(data_dir)

    async def asked() -> RetrainStatus:
        from temporalio.service import RPCError

        handle = (await session.temporal()).get_workflow_handle(workflow_id)
        try:
            return await _query(handle)
        except RPCError as error:
            raise CommandError(f"{workflow_id}: {error.message}", Exit.REFUSED) from error

    _print(workflow_id, asyncio.run(asked()), as_json=as_json)


async def _query(handle: Any) -> RetrainStatus:
    from volary_workflows.retrain.messages import RetrainStatus

    return await handle.query("status", result_type=RetrainStatus)


async def _ended(handle: Any) -> RetrainStatus:
    stage = ""
    while True:
        found = await _query(handle)
        if found.stage != stage:
            stage = found.stage
            progress(stage.lower().replace("_", " "))
        if found.outcome != "RUNNING":
            return found
        await asyncio.sleep(POLL_S)


def _print(workflow_id: str, found: RetrainStatus, *, as_json: bool) -> None:
    if as_json:
        print_json({"workflow_id": workflow_id} | asdict(found))
        return
    console.print(f"[bold]{workflow_id}[/]")
    gate = f"{found.gate.verdict}: {'; '.join(found.gate.reasons)}" if found.gate else ""
    rows = (
        ("outcome", f"{found.outcome} {found.reason}"),
        ("stage", found.stage),
        ("training set", f"{found.training_set} {found.rows or ''}"),
        ("run", found.run),
        ("version", found.version or ""),
        ("metrics", ", ".join(f"{k} {v:.4f}" for k, v in sorted(found.metrics.items()))),
        ("gate", gate),
        ("rollout", found.rollout.state if found.rollout else ""),
    )
    print_table(("what", "is"), rows)
