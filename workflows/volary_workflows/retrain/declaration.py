"""A declared training document as a plan."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from volary_kit.durations import parse_us
from volary_kit.errors import InvalidArgument

from volary_workflows.judge.gate import METHODS, NORMAL
from volary_workflows.judge.inputs import GateRule
from volary_workflows.retrain.messages import TrainingPlan
from volary_workflows.rollout.specification import SpecificationError, read_specification

GATE_FIELDS = {"metric", "margin", "alpha", "min_rows", "floors", "method"}
METRICS = ("log_loss", "brier", "error")
DEFAULT_HOLDOUT = "7d"
PLACE_HOLDER = 1


def plan_of(document: Mapping[str, Any], *, project: str) -> TrainingPlan:
    """Return the plan of a document of kind `Training`; raise InvalidArgument by field."""
    spec = _section(document.get("spec", document), "spec")
    window = _section(spec.get("window", {}), "window")
    gate = _section(spec.get("gate", {}), "gate")
    model = str(spec.get("model", ""))
    return TrainingPlan(
        model=model,
        feature_set=str(spec.get("feature_set", "")),
        sources=[str(source) for source in spec.get("sources", [])],
        spine=dict(_section(spec.get("spine", {}), "spine")),
        start_us=instant_us(window.get("start"), "window.start"),
        holdout_us=_duration_us(window.get("holdout", DEFAULT_HOLDOUT), "window.holdout"),
        gate=_gate(gate),
        floors={str(k): _number(v, f"gate.floors.{k}") for k, v in _floors(gate).items()},
        rollout=_rollout(spec, project, model),
    )


def instant_us(value: Any, field: str) -> int:
    """Return the microseconds of an ISO 8601 text or a datetime; without a zone it is UTC."""
    try:
        time = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError:
        raise _wrong(field, "must be an instant such as 2024-01-01T00:00:00Z") from None
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    since = time - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _gate(gate: Mapping[str, Any]) -> GateRule:
    for key in gate:
        if key not in GATE_FIELDS:
            raise _wrong(f"gate.{key}", "is not a field")
    rule = GateRule(
        metric=str(gate.get("metric", "log_loss")),
        margin=_number(gate.get("margin", 0.01), "gate.margin"),
        alpha=_number(gate.get("alpha", 0.01), "gate.alpha"),
        method=str(gate.get("method", NORMAL)),
        min_rows=int(_number(gate.get("min_rows", 1_000), "gate.min_rows")),
    )
    if rule.metric not in METRICS:
        raise _wrong("gate.metric", f"must be one of {', '.join(METRICS)}")
    if rule.method not in METHODS:
        raise _wrong("gate.method", f"must be one of {', '.join(METHODS)}")
    if not 0 < rule.alpha < 0.5:
        raise _wrong("gate.alpha", "must be between 0 and 0.5")
    if rule.margin <= 0:
        raise _wrong("gate.margin", "must be above 0")
    return rule


def _rollout(spec: Mapping[str, Any], project: str, model: str) -> Any:
    section = _section(spec.get("rollout", {}), "rollout")
    try:
        return read_specification(section, project=project, model=model, candidate=PLACE_HOLDER)
    except SpecificationError as error:
        fields = {f"rollout.{field}": text for field, text in error.problems.items()}
        raise InvalidArgument("DOCUMENT_INVALID", str(error), violations=fields) from error


def _floors(gate: Mapping[str, Any]) -> Mapping[str, Any]:
    return _section(gate.get("floors", {}), "gate.floors")


def _section(value: Any, field: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(field, "must be an object")
    return value


def _number(value: Any, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(field, "must be a number")
    return float(value)


def _duration_us(value: Any, field: str) -> int:
    try:
        return parse_us(value)
    except ValueError as error:
        raise _wrong(field, str(error)) from None


def _wrong(field: str, text: str) -> InvalidArgument:
    return InvalidArgument("DOCUMENT_INVALID", f"{field} {text}", field=field)
