"""`volary production`, `predict`, `alerts`: what serves, and how it does."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.panel import Panel

from volary_cli.commands.exits import CommandError, Exit
from volary_cli.commands.mesh import DataDir
from volary_cli.commands.output import AsJson, console, print_json, print_table
from volary_cli.commands.session import Session

if TYPE_CHECKING:
    from volary.registry.v1.model_pb2 import ModelVersion, Production


def production(
    model: Annotated[str, typer.Argument(help="Model id.")],
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Say what is in production: since when, trained on what, approved by whom, against what."""
    answer = Session(data_dir).ask(lambda client: client.production(model))
    if as_json:
        print_json(_as_dict(answer))
        return
    console.print(Panel.fit(_described(answer), title=f"[bold]{model}[/] in production"))


def _described(answer: Production) -> str:
    version, lineage = answer.version, answer.version.lineage
    window = f"{_day(lineage.train_start_time)} to {_day(lineage.train_end_time)}"
    lines = [
        ("version", f"{version.version}  {version.digest}"),
        ("since", f"{_instant(answer.since)}, by {answer.deployment.cause}"),
        ("trained", f"{_instant(version.create_time)}, {lineage.trigger}, {lineage.run}"),
        ("on", f"{window}, {lineage.training_set}"),
        ("snapshots", ", ".join(lineage.snapshots)),
        ("features", version.feature_set),
        ("approved by", _approval(version)),
        ("gate", f"{answer.gate.verdict} {', '.join(answer.gate.reason_codes)}"),
        ("metrics", _metrics(version, dict(answer.metric_deltas))),
        ("previous", str(answer.previous.version) if answer.HasField("previous") else "none"),
        ("owner", f"{answer.owner}, on call {answer.on_call}"),
    ]
    return "\n".join(f"[dim]{label:<12}[/]{text}" for label, text in lines)


def _approval(version: ModelVersion) -> str:
    approval = version.approval
    return f"{approval.principal or 'nobody'} {approval.comment}".strip()


def _metrics(version: ModelVersion, deltas: dict[str, float]) -> str:
    """Return the metrics with their change against the previous version."""
    shown = []
    for name, value in sorted(version.metrics.items()):
        delta = f" ({deltas[name]:+.4f})" if name in deltas else ""
        shown.append(f"{name} {value:.4f}{delta}")
    return ", ".join(shown)


def _day(time: Any) -> str:
    return time.ToDatetime().date().isoformat() if time.seconds else "?"


def _instant(time: Any) -> str:
    return time.ToDatetime().isoformat(sep=" ", timespec="seconds") + " UTC"


def _as_dict(message: Any) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def predict(
    model: Annotated[str, typer.Argument(help="Model id.")],
    entity: Annotated[
        list[str] | None, typer.Option("--entity", "-e", help="Key of an entity, as name=value.")
    ] = None,
    field: Annotated[
        list[str] | None, typer.Option("--field", "-f", help="Request-time field, as name=value.")
    ] = None,
    at: Annotated[
        datetime | None, typer.Option(help="Time that is asked for, UTC. Default: now.")
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Predict by entity: keys and request-time fields in, features fetched, prediction out.

    Example: `volary predict flights-delay -e carrier=UA -e origin=EWR -e dest=IAH
    -e tailnum=N14228 -f distance=1400 -f sched_dep_time=515 -f sched_arr_time=819`.
    """
    from datetime import UTC

    keys, fields = _pairs(entity), {k: _scalar(v) for k, v in _pairs(field).items()}
    event_time = at.replace(tzinfo=UTC) if at else None
    answer = _as_dict(
        Session(data_dir).ask(
            lambda client: client.predict(model, keys, fields, event_time=event_time)
        )
    )
    if as_json:
        print_json(answer)
    else:
        print_table(("field", "value"), [(k, _shown(v)) for k, v in answer.items()])


def _pairs(words: list[str] | None) -> dict[str, str]:
    pairs = {}
    for word in words or ():
        name, separator, value = word.partition("=")
        if not separator or not name:
            raise CommandError(f"{word!r} is not name=value", Exit.USAGE)
        pairs[name] = value
    return pairs


def _scalar(text: str) -> bool | int | float | str:
    """Return what a value means: a JSON scalar, else text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float) else text


def _shown(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def alerts(
    model: Annotated[str | None, typer.Argument(help="Model id; without one, all.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """List the monitor's alerts, the newest first."""
    from volary.monitor.v1.monitor_service_pb2 import ListAlertsRequest

    session = Session(data_dir)
    parent = f"projects/{session.project}"
    request = ListAlertsRequest(parent=parent, page_size=limit, model=model or "")
    reply = session.ask(lambda client: client.monitor.ListAlerts(request))
    found = [_as_dict(alert) for alert in reply.alerts]
    if as_json:
        print_json({"alerts": found})
        return
    columns = ("raise_time", "model", "kind", "severity", "state", "summary", "on_call")
    print_table(columns, [[row.get(column, "") for column in columns] for row in found])
