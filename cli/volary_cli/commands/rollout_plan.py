"""`volary rollout plan`: what a declared rollout can see, and how long it takes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from volary_cli.commands.exits import CommandError, Exit
from volary_cli.commands.mesh import DataDir
from volary_cli.commands.output import AsJson, console, print_json, print_table
from volary_cli.commands.session import Session

if TYPE_CHECKING:
    from volary_workflows.judge.power import GuardPower, Plan, PlannedStage
    from volary_workflows.rollout.messages import RolloutSpec

LEAST_CALLS = 200  # fewer say nothing about a rate


def plan(
    model: Annotated[str, typer.Argument(help="Model id.")],
    project: Annotated[
        Path, typer.Option("--project", "-p", help="Folder whose Training declares the rollout.")
    ],
    calls_per_s: Annotated[
        float | None,
        typer.Option(help="Calls of the model a second. Default: those of its present traffic."),
    ] = None,
    baseline_error: Annotated[
        float | None,
        typer.Option(help="Share of errors of the baseline. Default: that of its present traffic."),
    ] = None,
    runs: Annotated[int, typer.Option(min=100, max=100_000, help="Simulated rollouts a row.")] = (
        1_000
    ),
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Say which regressions a rollout would see, with what probability, and how long it takes.

    Example: `volary rollout plan flights-delay -p examples/flights --calls-per-s 12
    --baseline-error 0.01`.
    """
    spec = _declared(project, model)
    if calls_per_s is None or baseline_error is None:
        measured = asyncio.run(_measured(Session(data_dir), model))
        calls_per_s = measured[0] if calls_per_s is None else calls_per_s
        baseline_error = measured[1] if baseline_error is None else baseline_error
    found = _planned(spec, calls_per_s, baseline_error, runs)
    if as_json:
        print_json({"model": model, **found.to_document()})
    else:
        _print(model, found)


def _declared(folder: Path, model: str) -> RolloutSpec:
    from volary_workflows.rollout.specification import read_specification

    from volary_cli.projects import read_project

    declared = [
        each.spec["rollout"]
        for each in read_project(folder)
        if each.kind == "Training" and each.spec.get("model") == model and "rollout" in each.spec
    ]
    if len(declared) != 1:
        raise CommandError(f"{folder} declares {len(declared)} rollouts of {model}, not one")
    return read_specification(declared[0], project="default", model=model, candidate=1)


def _planned(spec: RolloutSpec, calls_per_s: float, baseline_error: float, runs: int) -> Plan:
    from volary_workflows.judge.power import plan_rollout

    try:
        return plan_rollout(
            stages_of(spec),
            spec.guards,
            bake_s=spec.bake_s,
            max_extensions=spec.max_extensions,
            calls_per_s=calls_per_s,
            baseline_error=baseline_error,
            is_sticky=bool(spec.sticky_by),
            runs=runs,
        )
    except ValueError as error:
        raise CommandError(str(error), Exit.USAGE) from error


def stages_of(spec: RolloutSpec) -> list[PlannedStage]:
    """Return the stages of a specification as the planner takes them."""
    from volary_workflows.judge.power import PlannedStage
    from volary_workflows.rollout.messages import WHOLE

    stages = [
        PlannedStage(
            "canary" if i == 0 else f"{step.weight / 100:g} %",
            step.weight / WHOLE,
            step.min_duration_s,
            step.min_requests,
        )
        for i, step in enumerate(spec.steps)
    ]
    if spec.shadow is None:
        return stages
    shadow = spec.shadow
    first = PlannedStage(
        "shadow", shadow.fraction, shadow.min_duration_s, shadow.min_requests, True
    )
    return [first, *stages]


async def _measured(session: Session, model: str) -> tuple[float, float]:
    """Return calls a second and share of errors under the model's present traffic."""
    from volary.gateway.v1 import evidence_service_pb2, traffic_service_pb2
    from volary_workflows.rollout.evidence import counts_of

    name = f"projects/{session.project}/models/{model}"
    async with session.client() as client:
        traffic = await client.traffic.GetTraffic(
            traffic_service_pb2.GetTrafficRequest(name=f"{name}/traffic")
        )
        evidence = await client.evidence.GetEvidence(
            evidence_service_pb2.GetEvidenceRequest(
                model=name,
                rollout=traffic.rollout.rpartition("/")[2],
                from_generation=traffic.generation,
            )
        )
    served = [variant for variant in evidence.variants if not variant.shadow]
    counts = counts_of(served)
    if counts.calls < LEAST_CALLS:
        raise CommandError(
            f"{model} has answered {counts.calls} calls under its present traffic, fewer than "
            f"{LEAST_CALLS}: give --calls-per-s and --baseline-error"
        )
    began = min(variant.first_time.ToDatetime() for variant in served)
    ended = max(variant.last_time.ToDatetime() for variant in served)
    seconds = max((ended - began).total_seconds(), 1.0)
    return counts.calls / seconds, counts.errors / counts.calls


def _print(model: str, found: Plan) -> None:
    console.print(
        f"{model} at {found.calls_per_s:g} calls a second, {found.baseline_error:.3%} errors; "
        f"whole, with its bake: {_duration(found.total_s)}\n"
    )
    columns = ("step", "share", "candidate calls/s", "min requests", "evidence", "takes", "because")
    print_table(
        columns,
        [
            (
                stage.name,
                f"{stage.share:.3g}",
                f"{stage.candidate_calls_per_s:.3g}",
                _duration(stage.requests_s),
                _duration(stage.evidence_s),
                _duration(stage.duration_s),
                stage.binding,
            )
            for stage in found.stages
        ],
        right=columns[1:6],
    )
    for metric in dict.fromkeys(power.metric for power in found.powers):
        _print_power([power for power in found.powers if power.metric == metric], found)
    if found.scores:
        console.print()
        rows = [(s.metric, f"{s.effect:.0%}", f"{s.count:,}", s.unit) for s in found.scores]
        print_table(("metric", "worse by", "needs", "unit"), rows, right=("worse by", "needs"))
    console.print()
    for warning in found.warnings:
        console.print(f"[yellow]![/] {warning}")


def _print_power(powers: list[GuardPower], found: Plan) -> None:
    first = powers[0]
    console.print(
        f"\n{first.metric} ({first.kind}), baseline {first.baseline_rate:.3%}: probability of a "
        f"stop by the end of each step, {found.runs:,} simulated rollouts"
    )
    names = [stage.name for stage in found.stages][: len(first.by_stage)]
    columns = ("factor", "rate", *names, "exposed calls", "then")
    print_table(columns, [_power_row(power) for power in powers], right=columns[:-1])


def _power_row(power: GuardPower) -> tuple[Any, ...]:
    exposed = "" if power.median_exposed is None else f"{power.median_exposed:,.0f}"
    then = "pauses" if power.is_below_floor else "rolls back"
    return (
        f"{power.ratio:g}",
        f"{power.candidate_rate:.3%}",
        *(f"{share:.1%}" for share in power.by_stage),
        exposed,
        "false alarm" if power.ratio == 1 else then,
    )


def _duration(seconds: float) -> str:
    if seconds < 0:
        return "never"
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
