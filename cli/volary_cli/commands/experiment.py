"""`volary experiment ...`: compare versions on a metric, among callers who stay with theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

import typer

from volary_cli.commands.exits import CommandError, Exit
from volary_cli.commands.experiment_view import reported, shown
from volary_cli.commands.mesh import DataDir
from volary_cli.commands.output import AsJson, console, print_json, print_table
from volary_cli.commands.session import Session

if TYPE_CHECKING:
    from volary.registry.v1.model_pb2 import Evaluation
    from volary_client import AsyncClient
    from volary_workflows.experiment.messages import ExperimentSpec, ExperimentStatus

app = typer.Typer(
    no_args_is_help=True,
    help=(
        "Compare versions on a metric of the business, or on a model's accuracy.\n\n"
        "Callers are drawn once and stay with their arm; the interval holds whenever one looks, so "
        "an experiment ends as soon as it knows. Production answers every call before and after. "
        "Outcomes are told to monitor (`RecordOutcomes`) by the reply's `volary_prediction_id`."
    ),
)
# a long one is a chain of runs, of which the last one counts
LISTED = "WorkflowType = 'ExperimentWorkflow' AND ExecutionStatus != 'ContinuedAsNew'"
Model = Annotated[str, typer.Argument(help="Model id.")]
Comment = Annotated[str, typer.Option("--comment", "-m", help="Why, in words.")]


@app.command()
def start(
    file: Annotated[Path, typer.Argument(help="YAML document of kind Experiment.")],
    comment: Comment = "",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Start an experiment as a document declares it.

    Example: `volary experiment start experiment.yaml`, where the document says

    kind: Experiment, name, owner, on_call, and in `spec`: model, arms (name, version, share),
    control (the arm in production), metric (name, range, expected, higher_is_better), sticky_by
    (the header that names the user), alpha, min_effect, min_duration, max_duration, group.
    """
    session = Session(data_dir)
    spec = declared(file, session.project, comment, session.principal)

    async def started() -> ExperimentStatus:
        from volary_workflows.starting import start_experiment

        return await _query(await start_experiment(await session.temporal(), spec))

    _print(asyncio.run(started()), as_json=as_json)


def declared(file: Path, project: str, comment: str, principal: str) -> ExperimentSpec:
    """Read the one experiment that a file declares; raise CommandError with every problem."""
    from volary_workflows.experiment.specification import SpecificationError, read_experiment

    from volary_cli.projects.reading import read_file

    found = [each for each in read_file(file) if each.kind == "Experiment"]
    if len(found) != 1:
        raise CommandError(f"{file} declares {len(found)} experiments, not one")
    try:
        return read_experiment(
            found[0].spec,
            name=found[0].name,
            project=project,
            reason=comment,
            requested_by=principal,
        )
    except SpecificationError as error:
        raise CommandError(f"{file}: {error}") from error


@app.command()
def status(model: Model, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Show where a model's experiment is, the running one or the last.

    Example: `volary experiment status flights-delay`.
    """
    session = Session(data_dir)
    _print(asyncio.run(_with_handle(session, model, _query)), as_json=as_json)


@app.command()
def stop(
    model: Model, comment: Comment = "", data_dir: DataDir = None, as_json: AsJson = False
) -> None:
    """Give all traffic back to production now, and keep what is known as the report.

    Example: `volary experiment stop flights-delay -m "the sale begins"`.
    """
    session = Session(data_dir)

    async def stopped(handle: Any) -> ExperimentStatus:
        from volary_workflows.experiment.messages import ExperimentStatus
        from volary_workflows.rollout.messages import Command
        from volary_workflows.starting import told

        command = Command(session.principal, comment, str(uuid4()))
        return await told(handle, "stop", command, ExperimentStatus)

    _print(asyncio.run(_with_handle(session, model, stopped)), as_json=as_json)


@app.command("list")
def list_experiments(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List the experiments that Temporal remembers, newest first, running or not.

    Example: `volary experiment list --json`.
    """
    rows = asyncio.run(_listed(Session(data_dir)))
    if as_json:
        print_json(rows)
        return
    print_table(
        ("model", "state", "started", "ended"),
        [(row["model"], row["state"], row["started"], row["ended"]) for row in rows],
    )


@app.command()
def report(
    experiment: Annotated[str, typer.Argument(help="Experiment id, as `status` shows it.")],
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Show the stored report and judge it again; exit status 5 when it comes out differently.

    Example: `volary experiment report flights-delay.x.bolder.1a2b3c4d`.
    """
    from volary_workflows.rollout.explaining import explanation_of

    session = Session(data_dir)
    found = session.ask(lambda client: _stored(client, experiment))
    again = explanation_of(found)
    if as_json:
        from google.protobuf.json_format import MessageToDict

        print_json({"report": MessageToDict(found), "again": asdict(again)})
    else:
        console.print(reported(found, again))
    if not again.agrees:
        raise typer.Exit(Exit.REFUSED)


async def _stored(client: AsyncClient, experiment: str) -> Evaluation:
    from volary.registry.v1.registry_service_pb2 import GetEvaluationRequest
    from volary_kit.errors import NotFound
    from volary_workflows.experiment.naming import model_of

    model = model_of(experiment)
    if not model:
        text = f"{experiment} is no experiment id: it looks like MODEL.x.NAME.HASH"
        raise CommandError(text, Exit.REFUSED)
    name = f"projects/{client.project}/models/{model}/evaluations/{experiment}.report"
    try:
        return await client.registry.GetEvaluation(GetEvaluationRequest(name=name))
    except NotFound as error:
        text = f"no report is stored of {experiment}: `volary experiment status {model}` says why"
        raise CommandError(text, Exit.REFUSED) from error


async def _listed(session: Session) -> list[dict[str, str]]:
    client = await session.temporal()
    rows = [
        {
            "model": each.id.rpartition("/")[2],
            "project": each.id.split("/")[1],
            "state": _state_of(each),
            "started": each.start_time.isoformat(timespec="seconds"),
            "ended": each.close_time.isoformat(timespec="seconds") if each.close_time else "",
        }
        async for each in client.list_workflows(LISTED)
    ]
    return [row for row in rows if row["project"] == session.project]


def _state_of(execution: Any) -> str:
    from volary_workflows.attributes import STATE

    return execution.typed_search_attributes.get(STATE) or execution.status.name


async def _with_handle(
    session: Session, model: str, act: Callable[[Any], Awaitable[ExperimentStatus]]
) -> ExperimentStatus:
    from temporalio.client import WorkflowUpdateFailedError
    from temporalio.service import RPCError, RPCStatusCode
    from volary_workflows.starting import experiment_handle

    handle = experiment_handle(await session.temporal(), session.project, model)
    try:
        return await act(handle)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            text = f"there is no running experiment on {model}"
            raise CommandError(text, Exit.REFUSED) from error
        raise CommandError(f"Temporal: {error.message}") from error
    except WorkflowUpdateFailedError as error:
        raise CommandError(str(error.cause), Exit.REFUSED) from error


async def _query(handle: Any) -> ExperimentStatus:
    from volary_workflows.experiment.messages import ExperimentStatus

    return await handle.query("status", result_type=ExperimentStatus)


def _print(found: ExperimentStatus, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(found))
    else:
        console.print(shown(found))
