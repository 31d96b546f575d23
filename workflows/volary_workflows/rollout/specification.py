"""Read the declared specification of a rollout; every problem names its field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from volary_workflows.declared import Reader, SpecificationError
from volary_workflows.judge.inputs import (
    BUSINESS,
    ERROR_RATE,
    LATENCY_QUANTILE,
    PREDICTION_DISTRIBUTION,
    QUALITY,
    SCORED_KINDS,
    Guard,
)
from volary_workflows.rollout.messages import (
    WHOLE,
    ApprovalPolicy,
    BlastRadius,
    FreezeWindow,
    Notification,
    RolloutSpec,
    ShadowStage,
    Step,
)
from volary_workflows.rollout.soundness import require_sound

__all__ = ["SpecificationError", "read_specification", "require_sound"]

LATENCY_EFFECT = 0.05  # 5 more of 100 calls slower than a threshold
DEFAULT_METRICS = {QUALITY: "accuracy", PREDICTION_DISTRIBUTION: "score"}
SCORE_MARGIN = 0.02  # two points of a hundred
DISTRIBUTION_EFFECT = 0.1  # a tenth of the predictions in another bin
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
WEEKLY = re.compile(r"(mon|tue|wed|thu|fri|sat|sun) (\d\d):(\d\d)")


def read_specification(
    document: Mapping[str, Any], *, project: str, model: str, candidate: int, **more: str
) -> RolloutSpec:
    """Return the specification of a declared `rollout` section; raise SpecificationError.

    Durations are texts like `90s`, `24h` or seconds, shares texts like `10%` or fractions of 1.
    """
    reader = _Reader()
    known = {
        "shadow", "steps", "bake", "guards", "approval", "on_inconclusive", "max_extensions",
        "on_breach", "sticky_by", "poll", "start_at", "cooldown", "freeze", "blast_radius",
        "notify",
    }  # fmt: skip
    reader.only(document, known, "")
    deciding, dry_run = reader.guards(document)
    spec = RolloutSpec(
        model=model,
        candidate=candidate,
        project=project,
        shadow=reader.shadow(document.get("shadow")),
        steps=[reader.step(row, i) for i, row in enumerate(reader.rows(document, "steps"))],
        bake_s=reader.seconds(document.get("bake", "24h"), "bake"),
        guards=deciding,
        approval=reader.approval(document.get("approval")),
        on_inconclusive=str(document.get("on_inconclusive", "extend")),
        max_extensions=reader.whole(document.get("max_extensions", 20), "max_extensions"),
        on_breach=str(document.get("on_breach", "rollback")),
        sticky_by=str(document.get("sticky_by", "")),
        poll_s=reader.seconds(document.get("poll", 0), "poll"),
        start_at_s=reader.instant(document.get("start_at", 0), "start_at"),
        cooldown_s=reader.seconds(document.get("cooldown", 0), "cooldown"),
        freeze=[reader.freeze(row, i) for i, row in enumerate(reader.rows(document, "freeze"))],
        blast_radius=reader.blast_radius(document.get("blast_radius")),
        dry_run=dry_run,
        notify=[reader.hook(row, i) for i, row in enumerate(reader.rows(document, "notify"))],
        **more,
    )
    require_sound(spec, reader.problems, is_new=True)
    return spec


class _Reader(Reader):
    """Turns a declared rollout into its parts."""

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

    def guards(self, document: Mapping[str, Any]) -> tuple[list[Guard], list[Guard]]:
        """Return the guards that decide, one for errors when none is declared, and the others."""
        rows = list(enumerate(self.rows(document, "guards")))
        deciding = [self.guard(row, i) for i, row in rows if not row.get("dry_run")]
        return deciding or [Guard()], [self.guard(row, i) for i, row in rows if row.get("dry_run")]

    def guard(self, row: Mapping[str, Any], i: int) -> Guard:
        at = f"guards[{i}]."
        numbers = {"alpha", "margin", "ceiling", "min_effect"}
        others = {"metric", "kind", "limit", "promotes", "dry_run", "range", "higher_is_better"}
        self.only(row, {*numbers, *others}, at)
        kind = str(row.get("kind", ERROR_RATE))
        read: dict[str, Any] = {
            name: self.share(row[name], f"{at}{name}") for name in numbers if name in row
        }
        if kind == LATENCY_QUANTILE:
            read.setdefault("min_effect", LATENCY_EFFECT)
        if kind in SCORED_KINDS:
            read.setdefault("margin", SCORE_MARGIN)
        if kind == PREDICTION_DISTRIBUTION:
            read.setdefault("min_effect", DISTRIBUTION_EFFECT)
        if "limit" in row:
            read["limit_us"] = round(self.seconds(row["limit"], f"{at}limit") * 1_000_000)
        for name in ("promotes", "higher_is_better"):
            if name in row:
                read[name] = bool(row[name])
        if "range" in row:
            read["lower"], read["upper"] = self.interval(row["range"], f"{at}range")
        if kind == BUSINESS and "metric" not in row:
            self.problems[f"{at}metric"] = "must be the metric that outcomes are recorded under"
        metric = str(row.get("metric", DEFAULT_METRICS.get(kind, kind)))
        return Guard(metric=metric, kind=kind, **read)

    def approval(self, row: Any) -> ApprovalPolicy:
        if row is None:
            return ApprovalPolicy()
        if not isinstance(row, Mapping):
            self.problems["approval"] = "must be an object"
            return ApprovalPolicy()
        self.only(row, {"mode", "who", "expire", "quorum", "valid"}, "approval.")
        return ApprovalPolicy(
            str(row.get("mode", "none")),
            [str(each) for each in row.get("who", [])],
            self.seconds(row.get("expire", "7d"), "approval.expire"),
            self.whole(row.get("quorum", 1), "approval.quorum"),
            self.seconds(row.get("valid", 0), "approval.valid"),
        )

    def freeze(self, row: Mapping[str, Any], i: int) -> FreezeWindow:
        at = f"freeze[{i}]."
        self.only(row, {"weekly", "start", "end"}, at)
        weekly = bool(row.get("weekly"))
        read = self.hour_of_week if weekly else self.instant
        return FreezeWindow(
            read(row.get("start"), f"{at}start"), read(row.get("end"), f"{at}end"), weekly
        )

    def blast_radius(self, row: Any) -> BlastRadius:
        if row is None:
            return BlastRadius()
        if not isinstance(row, Mapping):
            self.problems["blast_radius"] = "must be an object"
            return BlastRadius()
        self.only(row, {"max_share", "max_exposed_calls"}, "blast_radius.")
        return BlastRadius(
            round(self.share(row.get("max_share", 1.0), "blast_radius.max_share") * WHOLE),
            self.whole(row.get("max_exposed_calls", 0), "blast_radius.max_exposed_calls"),
        )

    def hook(self, row: Mapping[str, Any], i: int) -> Notification:
        self.only(row, {"url", "on"}, f"notify[{i}].")
        on = row.get("on", [])
        if not isinstance(on, list):
            self.problems[f"notify[{i}].on"] = "must be a list of states"
            on = []
        return Notification(str(row.get("url", "")), [str(each).upper() for each in on])

    def hour_of_week(self, value: Any, field: str) -> float:
        match = WEEKLY.fullmatch(str(value).lower())
        if match is None or int(match[2]) > 23 or int(match[3]) > 59:
            self.problems[field] = "must be a day and hour, UTC, such as Fri 18:00"
            return 0.0
        return DAYS.index(match[1]) * 86_400.0 + int(match[2]) * 3_600.0 + int(match[3]) * 60.0
