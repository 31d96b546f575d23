"""Read and check the specification of a rollout; every problem names its field."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from volary_workflows.judge.inputs import ERROR_RATE, JUDGED_KINDS, LATENCY_QUANTILE, Guard
from volary_workflows.rollout.messages import (
    WHOLE,
    ApprovalPolicy,
    RolloutSpec,
    ShadowStage,
    Step,
)

UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
LONGEST_S = 30 * 86_400.0
MOST_STEPS = 50
LATENCY_EFFECT = 0.05  # 5 more of 100 calls slower than a threshold
LATER_KINDS = ("quality", "prediction_distribution", "business")
ID = re.compile(r"[a-z][a-z0-9-]{0,62}")
HEADER = re.compile(r"[a-z0-9-]{0,64}")


class SpecificationError(ValueError):
    """The specification is wrong; `problems` maps each field to what is wrong with it."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        self.problems = dict(problems)
        super().__init__("; ".join(f"{field}: {text}" for field, text in problems.items()))


def read_specification(
    document: Mapping[str, Any], *, project: str, model: str, candidate: int, **more: str
) -> RolloutSpec:
    """Return the specification of a declared `rollout` section; raise SpecificationError.

    Durations are texts like `90s`, `24h` or seconds, shares texts like `10%` or fractions of 1.
    """
    reader = _Reader()
    known = {
        "shadow", "steps", "bake", "guards", "approval", "on_inconclusive", "max_extensions",
        "on_breach", "sticky_by", "poll",
    }  # fmt: skip
    reader.only(document, known, "")
    spec = RolloutSpec(
        model=model,
        candidate=candidate,
        project=project,
        shadow=reader.shadow(document.get("shadow")),
        steps=[reader.step(row, i) for i, row in enumerate(reader.rows(document, "steps"))],
        bake_s=reader.seconds(document.get("bake", "24h"), "bake"),
        guards=[reader.guard(row, i) for i, row in enumerate(reader.rows(document, "guards"))]
        or [Guard()],
        approval=reader.approval(document.get("approval")),
        on_inconclusive=str(document.get("on_inconclusive", "extend")),
        max_extensions=reader.whole(document.get("max_extensions", 20), "max_extensions"),
        on_breach=str(document.get("on_breach", "rollback")),
        sticky_by=str(document.get("sticky_by", "")),
        poll_s=reader.seconds(document.get("poll", 0), "poll"),
        **more,
    )
    require_sound(spec, reader.problems)
    return spec


def require_sound(spec: RolloutSpec, problems: Mapping[str, str] | None = None) -> None:
    """Raise SpecificationError with everything that is wrong, after `problems` found before."""
    found = dict(problems or {})
    for field, text in _problems(spec):
        found.setdefault(field, text)
    if found:
        raise SpecificationError(found)


def _problems(spec: RolloutSpec) -> Iterator[tuple[str, str]]:
    if not ID.fullmatch(spec.model):
        yield "model", "must be a model id"
    if not ID.fullmatch(spec.project):
        yield "project", "must be a project id"
    if spec.candidate < 1:
        yield "candidate", "must be a version number"
    yield from _stage_problems(spec)
    yield from _step_problems(spec.steps)
    yield from _guard_problems(spec)
    if spec.approval.mode not in ("none", "manual"):
        yield "approval.mode", "must be none or manual"
    if not 0 < spec.approval.expire_s <= LONGEST_S:
        yield "approval.expire", "must be above 0 and at most 30 days"
    if spec.on_inconclusive not in ("extend", "rollback"):
        yield "on_inconclusive", "must be extend or rollback"
    if spec.on_breach != "rollback":
        yield "on_breach", "must be rollback"
    if not 0 <= spec.max_extensions <= 10_000:
        yield "max_extensions", "must be in 0..10000"
    if not HEADER.fullmatch(spec.sticky_by):
        yield "sticky_by", "must be the name of a request header, in lower case"


def _stage_problems(spec: RolloutSpec) -> Iterator[tuple[str, str]]:
    if not 0 < spec.bake_s <= LONGEST_S:
        yield "bake", "must be above 0 and at most 30 days"
    if not (spec.poll_s == 0 or 0.05 <= spec.poll_s <= 86_400):
        yield "poll", "must be 50 ms to 24 h"
    if spec.shadow is None:
        return
    if not 0 < spec.shadow.fraction <= 1:
        yield "shadow.fraction", "must be above 0 % and at most 100 %"
    if not 0 < spec.shadow.min_duration_s <= LONGEST_S:
        yield "shadow.min_duration", "must be above 0 and at most 30 days"
    if spec.shadow.min_requests < 1:
        yield "shadow.min_requests", "must be 1 or more"


def _step_problems(steps: list[Step]) -> Iterator[tuple[str, str]]:
    if not 1 <= len(steps) <= MOST_STEPS:
        yield "steps", f"must be 1 to {MOST_STEPS} steps"
    before = 0
    for i, step in enumerate(steps):
        if not 0 < step.weight <= WHOLE:
            yield f"steps[{i}].weight", "must be above 0 % and at most 100 %"
        elif step.weight <= before:
            yield f"steps[{i}].weight", "must be above the step before"
        if not 0 < step.min_duration_s <= LONGEST_S:
            yield f"steps[{i}].min_duration", "must be above 0 and at most 30 days"
        if step.min_requests < 1:
            yield f"steps[{i}].min_requests", "must be 1 or more"
        before = max(before, step.weight)


def _guard_problems(spec: RolloutSpec) -> Iterator[tuple[str, str]]:
    if not spec.guards:
        yield "guards", "must be 1 or more"
    for i, guard in enumerate(spec.guards):
        at = f"guards[{i}]"
        if guard.kind in LATER_KINDS:
            yield f"{at}.kind", f"{guard.kind} is not judged by this version"
        elif guard.kind not in JUDGED_KINDS:
            yield f"{at}.kind", f"must be one of {', '.join(JUDGED_KINDS)}"
        elif guard.kind != ERROR_RATE and spec.sticky_by:
            yield f"{at}.kind", "sticky users are compared by their first error only"
        if not 0 < guard.alpha < 1:
            yield f"{at}.alpha", "must be between 0 and 1"
        if not 0 < guard.margin <= 100:
            yield f"{at}.margin", "must be above 0 and at most 100"
        if not 0 <= guard.ceiling < 1:
            yield f"{at}.ceiling", "must be a share below 1"
        if not 0 <= guard.min_effect < 1:
            yield f"{at}.min_effect", "must be a share below 1"
        if guard.limit_us < 0:
            yield f"{at}.limit", "must not be negative"
    alphas = [guard.alpha for guard in spec.guards]
    if all(0 < alpha < 1 for alpha in alphas) and sum(alphas) >= 1:
        yield "guards", "their alphas must sum to less than 1"


class _Reader:
    """Turns declared values into typed ones and keeps what is wrong."""

    def __init__(self) -> None:
        self.problems: dict[str, str] = {}

    def only(self, row: Mapping[str, Any], known: set[str], at: str) -> None:
        for key in row:
            if key not in known:
                self.problems[f"{at}{key}"] = "is not a field"

    def rows(self, document: Mapping[str, Any], field: str) -> list[Mapping[str, Any]]:
        rows = document.get(field, [])
        if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
            self.problems[field] = "must be a list of objects"
            return []
        return rows

    def shadow(self, row: Any) -> ShadowStage | None:
        if row is None:
            return None
        if not isinstance(row, Mapping):
            self.problems["shadow"] = "must be an object"
            return None
        self.only(row, {"fraction", "min_duration", "min_requests"}, "shadow.")
        return ShadowStage(
            self.share(row.get("fraction", 1.0), "shadow.fraction"),
            self.seconds(row.get("min_duration", "60s"), "shadow.min_duration"),
            self.whole(row.get("min_requests", 100), "shadow.min_requests"),
        )

    def step(self, row: Mapping[str, Any], i: int) -> Step:
        at = f"steps[{i}]."
        self.only(row, {"weight", "min_duration", "min_requests"}, at)
        return Step(
            round(self.share(row.get("weight", 0), f"{at}weight") * WHOLE),
            self.seconds(row.get("min_duration", "10m"), f"{at}min_duration"),
            self.whole(row.get("min_requests", 100), f"{at}min_requests"),
        )

    def guard(self, row: Mapping[str, Any], i: int) -> Guard:
        at = f"guards[{i}]."
        numbers = {"alpha", "margin", "ceiling", "min_effect"}
        self.only(row, {*numbers, "metric", "kind", "limit", "promotes"}, at)
        kind = str(row.get("kind", ERROR_RATE))
        read: dict[str, Any] = {
            name: self.share(row[name], f"{at}{name}") for name in numbers if name in row
        }
        if kind == LATENCY_QUANTILE:
            read.setdefault("min_effect", LATENCY_EFFECT)
        if "limit" in row:
            read["limit_us"] = round(self.seconds(row["limit"], f"{at}limit") * 1_000_000)
        if "promotes" in row:
            read["promotes"] = bool(row["promotes"])
        return Guard(metric=str(row.get("metric", kind)), kind=kind, **read)

    def approval(self, row: Any) -> ApprovalPolicy:
        if row is None:
            return ApprovalPolicy()
        if not isinstance(row, Mapping):
            self.problems["approval"] = "must be an object"
            return ApprovalPolicy()
        self.only(row, {"mode", "who", "expire"}, "approval.")
        return ApprovalPolicy(
            str(row.get("mode", "none")),
            [str(each) for each in row.get("who", [])],
            self.seconds(row.get("expire", "7d"), "approval.expire"),
        )

    def seconds(self, value: Any, field: str) -> float:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", str(value))
        if match:
            return float(match[1]) * UNITS_S[match[2]]
        return self._number(value, field, "must be a duration such as 90s or 24h")

    def share(self, value: Any, field: str) -> float:
        match = re.fullmatch(r"(\d+(?:\.\d+)?) ?%", str(value))
        if match:
            return float(match[1]) / 100
        return self._number(value, field, "must be a share such as 10% or 0.1")

    def whole(self, value: Any, field: str) -> int:
        number = self._number(value, field, "must be a whole number")
        if number != int(number):
            self.problems[field] = "must be a whole number"
        return int(number)

    def _number(self, value: Any, field: str, text: str) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and math.isfinite(value):
            return float(value)
        self.problems[field] = text
        return 0.0
