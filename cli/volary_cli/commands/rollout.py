"""`volary rollout ...`: put a version into traffic step by step, and look after it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

import typer
from rich.live import Live

from volary_cli.commands.exits import CommandError, Exit
from volary_cli.commands.mesh import DataDir
from volary_cli.commands.output import AsJson, console, print_json
from volary_cli.commands.rollout_plan import plan
from volary_cli.commands.rollout_view import explained, shown
from volary_cli.commands.rollout_watch import followed, traffic_of
from volary_cli.commands.session import Session

if TYPE_CHECKING:
    from volary.registry.v1.model_pb2 import Evaluation
    from volary_client import AsyncClient
    from volary_workflows.rollout.explaining import Explanation
    from volary_workflows.rollout.messages import RolloutSpec, RolloutStatus

app = typer.Typer(no_args_is_help=True, help="Put a version into traffic step by step.")
Model = Annotated[str, typer.Argument(help="Model id.")]
Comment = Annotated[str, typer.Option("--comment", "-m", help="Why, in words.")]
RequestId = Annotated[
    str, typer.Option("--request-id", help="The same when said again: it has its effect once.")
]
app.command()(plan)
MOST_ROWS = 1_000


@app.command()
def start(
    model: Model,
    candidate: Annotated[int, typer.Option("--candidate", "-c", help="Version to roll out.")],
    project: Annotated[
        Path, typer.Option("--project", "-p", help="Folder whose Training declares the rollout.")
    ],
    supersede: Annotated[
        bool, typer.Option("--supersede", help="End a rollout that is running first.")
    ] = False,
    comment: Comment = "",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Start a rollout as the model's training declares it.

    Example: `volary rollout start flights-delay -c 2 -p examples/flights`.
    """
    session = Session(data_dir)
    spec = _declared(session, project, model, candidate, comment)

    async def started() -> RolloutStatus:
        from volary_workflows.starting import start_rollout

        handle = await start_rollout(await session.temporal(), spec, supersede=supersede)
        return await _query(handle)

    _print(asyncio.run(started()), as_json=as_json)


def _declared(
    session: Session, folder: Path, model: str, candidate: int, comment: str
) -> RolloutSpec:
    from volary_workflows.rollout.specification import read_specification

    from volary_cli.projects import read_project

    declared = [
        each.spec["rollout"]
        for each in read_project(folder)
        if each.kind == "Training" and each.spec.get("model") == model and "rollout" in each.spec
    ]
    if len(declared) != 1:
        raise CommandError(f"{folder} declares {len(declared)} rollouts of {model}, not one")
    return read_specification(
        declared[0],
        project=session.project,
        model=model,
        candidate=candidate,
        reason=comment,
        requested_by=session.principal,
    )


@app.command()
def status(model: Model, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Show where a model's rollout is, the running one or the last."""
    _print(asyncio.run(_status(Session(data_dir), model)), as_json=as_json)


@app.command()
def watch(model: Model, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Follow a rollout to its end; exit status 5 unless the version was promoted."""
    found = asyncio.run(_watched(Session(data_dir), model, is_quiet=as_json))
    if as_json:
        print_json(asdict(found))
    if found.state != "PROMOTED":
        raise typer.Exit(Exit.REFUSED)


@app.command()
def explain(
    rollout: Annotated[str, typer.Argument(help="Rollout id, as `status` shows it.")],
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Judge again from what was stored; exit status 5 when a verdict comes out differently."""
    from volary_workflows.rollout.explaining import explanations

    session = Session(data_dir)
    model = rollout.rpartition("-v")[0]
    if not model:
        raise CommandError(f"{rollout} is no rollout id: it looks like MODEL-vN-HASH", Exit.REFUSED)

    async def asked() -> list[Explanation]:
        async with session.client() as client:
            return explanations(await _evaluations(client, model, rollout))

    found = asyncio.run(asked())
    if all(each.kind == "gate" for each in found):  # the gate is the version's, not the rollout's
        raise CommandError(f"nothing is stored of rollout {rollout}", Exit.REFUSED)
    if as_json:
        print_json([asdict(each) for each in found])
    else:
        console.print(explained(found))
    if not all(each.agrees for each in found):
        raise typer.Exit(Exit.REFUSED)


@app.command()
def approve(
    model: Model,
    comment: Comment = "",
    request_id: RequestId = "",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Approve a rollout that waits for a person."""
    _update("approve", model, comment, request_id, data_dir, as_json=as_json)


@app.command()
def reject(
    model: Model,
    comment: Comment = "",
    request_id: RequestId = "",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Reject a rollout that waits for a person; it ends."""
    _update("reject", model, comment, request_id, data_dir, as_json=as_json)


@app.command()
def pause(
    model: Model,
    comment: Comment = "",
    request_id: RequestId = "",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Hold a rollout where it is; the guards go on watching."""
    _update("pause", model, comment, request_id, data_dir, as_json=as_json)


@app.command()
def resume(
    model: Model,
    comment: Comment = "",
    request_id: RequestId = "",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Let a paused rollout go on."""
    _update("resume", model, comment, request_id, data_dir, as_json=as_json)


@app.command("skip-step")
def skip_step(
    model: Model,
    comment: Comment = "",
    request_id: RequestId = "",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Go on to the next step without waiting for evidence."""
    _update("skip_step", model, comment, request_id, data_dir, as_json=as_json)


@app.command()
def abort(
    model: Model,
    comment: Comment = "",
    request_id: RequestId = "",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Turn a rollout back to what served before."""
    _update("abort", model, comment, request_id, data_dir, as_json=as_json)


def _update(
    name: str, model: str, comment: str, request_id: str, data_dir: Path | None, *, as_json: bool
) -> None:
    session = Session(data_dir)

    async def updated(handle: Any) -> RolloutStatus:
        from volary_workflows.rollout.messages import Command, RolloutStatus
        from volary_workflows.starting import told

        command = Command(session.principal, comment, request_id or str(uuid4()))
        return await told(handle, name, command, RolloutStatus)

    _print(asyncio.run(_with_handle(session, model, updated)), as_json=as_json)


async def _status(session: Session, model: str) -> RolloutStatus:
    return await _with_handle(session, model, _query)


async def _watched(session: Session, model: str, *, is_quiet: bool) -> RolloutStatus:
    async def watched(handle: Any) -> RolloutStatus:
        with Live(console=console, auto_refresh=False, transient=is_quiet) as live:

            def show(found: RolloutStatus) -> None:
                if not is_quiet:
                    live.update(shown(found), refresh=True)

            async with session.client() as client:
                pushes = traffic_of(client, model)
                return await followed(lambda: _query(handle), pushes, handle.result(), show)

    return await _with_handle(session, model, watched)


async def _with_handle(
    session: Session, model: str, act: Callable[[Any], Awaitable[RolloutStatus]]
) -> RolloutStatus:
    from temporalio.client import WorkflowUpdateFailedError
    from temporalio.service import RPCError, RPCStatusCode
    from volary_workflows.starting import rollout_handle

    handle = rollout_handle(await session.temporal(), session.project, model)
    try:
        return await act(handle)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            raise CommandError(f"there is no running rollout of {model}", Exit.REFUSED) from error
        raise CommandError(f"Temporal: {error.message}") from error
    except WorkflowUpdateFailedError as error:
        raise CommandError(str(error.cause), Exit.REFUSED) from error


async def _query(handle: Any) -> RolloutStatus:
    from volary_workflows.rollout.messages import RolloutStatus

    return await handle.query("status", result_type=RolloutStatus)


def _print(found: RolloutStatus, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(found))
    else:
        console.print(shown(found))


async def _evaluations(client: AsyncClient, model: str, rollout: str) -> list[Evaluation]:
    """Return what is stored of a rollout, and of the gate that its candidate went through."""
    from volary.registry.v1.registry_service_pb2 import ListEvaluationsRequest

    candidate = rollout.rpartition("-v")[2].partition("-")[0]
    request = ListEvaluationsRequest(
        parent=f"projects/{client.project}/models/{model}", page_size=MOST_ROWS
    )
    found: list[Evaluation] = []
    while True:
        page = await client.registry.ListEvaluations(request)
        found += [
            each
            for each in page.evaluations
            if each.rollout == rollout
            or (each.kind == "gate" and str(each.candidate_version) == candidate)
        ]
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token
