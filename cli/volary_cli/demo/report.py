"""What came out: gathered from the services, printed for people or as one object."""

from __future__ import annotations

import asyncio
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table
from volary.monitor.v1.monitor_service_pb2 import GetQualityRequest, ListDriftRequest
from volary.registry.v1.model_pb2 import Production
from volary.registry.v1.registry_service_pb2 import ListDeploymentsRequest
from volary_client import AsyncClient

from volary_cli.demo.story import Story
from volary_cli.traces.spans import forest
from volary_cli.traces.store import opened_store

TRACE_WITHIN_S = 20.0
LOOK_EVERY_S = 0.25
EDGES = 2  # services that a complete trace of a prediction has at least besides Envoy


async def gather(story: Story, traces_url: str) -> dict[str, Any]:
    """Return the report; every number comes from a service."""
    client, model = story.client, story.spec.model
    production = await client.production(model)
    tally = story.replay.tally
    trace_id = "" if tally.last is None else tally.last.provenance.trace_id
    promoted = [r for r in story.retrains if r.outcome == "PROMOTED"]
    rolled_back = [r for r in story.retrains if r.rollout and r.rollout.state == "ROLLED_BACK"]
    return {
        "production": _production(production),
        "deployments": await _deployments(client, model),
        "promoted": [r.version for r in promoted],
        "rolled_back": [r.version for r in rolled_back],
        "retrain_cause": story.cause,
        "accuracy": await _accuracy(client, model),
        "drift": await _drift(client, model),
        "trace": await _trace(traces_url, trace_id),
        "calls": {
            "total": tally.total,
            "failed": tally.failed,
            "failed_by_traffic_change": tally.failed_by_traffic_change,
            "hurt_by_fault": tally.hurt,
            "by_version": {str(v): n for v, n in sorted(tally.answered.items())},
            "failures": dict(tally.failures),
        },
        "seconds": round(story.stage.seconds, 1),
    }


def _production(found: Production) -> dict[str, Any]:
    lineage = found.version.lineage
    return {
        "version": found.version.version,
        "since": _iso(found.since),
        "trained": _iso(found.version.create_time),
        "trained_on": f"{_iso(lineage.train_start_time)} to {_iso(lineage.train_end_time)}",
        "training_set": lineage.training_set,
        "snapshots": list(lineage.snapshots),
        "approved_by": found.version.approval.principal,
        "previous": found.previous.version,
        "metrics": dict(found.version.metrics),
        "metric_deltas": dict(found.metric_deltas),
        "gate": found.gate.verdict,
        "owner": found.owner,
    }


async def _deployments(client: AsyncClient, model: str) -> list[dict[str, Any]]:
    request = ListDeploymentsRequest(parent=client.name("models", model), page_size=1_000)
    found = (await client.registry.ListDeployments(request)).deployments
    return [
        {
            "generation": each.generation,
            "at": _iso(each.effective_time),
            "step": each.step,
            "cause": each.cause,
            "weights": {str(v): w / 100 for v, w in sorted(each.weights.items())},
            "shadow": each.shadow_version,
            "production": each.production_version,
            "reason": each.reason,
        }
        for each in reversed(found)
    ]


async def _accuracy(client: AsyncClient, model: str) -> list[dict[str, Any]]:
    request = GetQualityRequest(model=client.name("models", model))
    rows = (await client.monitor.GetQuality(request)).quality
    return [
        {
            "version": row.version,
            "predictions": row.predictions,
            "labelled": row.labelled,
            "coverage": round(row.coverage, 4),
            "accuracy": round(row.accuracy, 4),
            "auc": round(row.auc, 4),
            "brier": round(row.brier, 4),
            "log_loss": round(row.log_loss, 4),
        }
        for row in rows
    ]


async def _drift(client: AsyncClient, model: str) -> list[dict[str, Any]]:
    request = ListDriftRequest(model=client.name("models", model), drifted_only=True, page_size=20)
    rows = (await client.monitor.ListDrift(request)).drift
    return [
        {
            "window": f"{_iso(row.window_start)} to {_iso(row.window_end)}",
            "feature": row.feature,
            "psi": round(row.psi, 3),
            "ks": round(row.ks, 3),
            "shift_sd": round(row.mean_shift_sd, 2),
            "adjusted_p": row.adjusted_p_value,
        }
        for row in rows
    ]


async def _trace(url: str, trace_id: str) -> dict[str, Any]:
    """Return the spans of one prediction; waits until the exporters have sent them."""
    loop = asyncio.get_running_loop()
    give_up_s = loop.time() + TRACE_WITHIN_S
    async with opened_store(url) as store:
        while True:
            spans = await store.trace(trace_id) if trace_id else []
            if len({span.service for span in spans}) > EDGES or loop.time() > give_up_s:
                break
            await asyncio.sleep(LOOK_EVERY_S)
    roots = forest(spans) if spans else ()
    began_ns = min((root.span.start_ns for root in roots), default=0)
    return {"trace_id": trace_id, "roots": [root.as_dict(began_ns) for root in roots]}


def _iso(time: Timestamp) -> str:
    return time.ToDatetime().isoformat(timespec="seconds") + "Z"


def show(console: Console, report: dict[str, Any], addresses: dict[str, Any]) -> None:
    """Print the report for people."""
    console.rule("deployment history")
    columns = ("generation", "step", "cause", "weights", "shadow", "production", "reason")
    _table(console, report["deployments"], columns)
    console.rule("production")
    for key, value in report["production"].items():
        console.print(f"[bold]{key:<14}[/] {_cell(value)}")
    console.rule("accuracy as the truth came in")
    _table(console, report["accuracy"])
    console.rule(f"drift (the retrain was started by: {report['retrain_cause']})")
    _table(console, report["drift"])
    console.rule("calls")
    calls = report["calls"]
    hurt = calls["hurt_by_fault"] / max(calls["total"], 1)
    console.print(
        f"{calls['total']:,} calls, {calls['failed']:,} failed,"
        f" {calls['failed_by_traffic_change']:,} of them by a change of traffic;"
        f" the bad release hurt {calls['hurt_by_fault']:,} ({hurt:.3%})"
    )
    console.rule("look around")
    for label, value in addresses.items():
        console.print(f"[bold]{label:<14}[/] {value}")


def _table(console: Console, rows: list[dict[str, Any]], columns: tuple[str, ...] = ()) -> None:
    if not rows:
        console.print("[dim]nothing[/]")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    names = columns or tuple(rows[0])
    for name in names:
        is_number = all(isinstance(row[name], int | float) for row in rows)
        table.add_column(name, justify="right" if is_number else "left")
    for row in rows:
        table.add_row(*(_cell(row[name]) for name in names))
    console.print(table)


def _cell(value: Any) -> str:
    match value:
        case dict():
            return " ".join(f"{k}:{_cell(v)}" for k, v in value.items())
        case list():
            return " ".join(map(_cell, value))
        case float():
            return f"{value:.4g}"
    return str(value)
