"""Read the declared specification of an experiment; every problem names its field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from volary_workflows.declared import Reader, SpecificationError
from volary_workflows.experiment.messages import (
    RECORDED,
    Arm,
    ExperimentSpec,
    Metric,
    Segment,
)
from volary_workflows.experiment.soundness import require_sound
from volary_workflows.judge.inputs import Guard
from volary_workflows.rollout.messages import WHOLE

__all__ = ["SpecificationError", "read_experiment", "require_sound"]

KNOWN = {
    "model", "arms", "control", "metric", "sticky_by", "salt", "alpha", "alpha_of_ratio",
    "min_effect", "min_duration", "max_duration", "poll", "group", "guard", "segment",
}  # fmt: skip
GUARD_NUMBERS = ("alpha", "margin", "ceiling", "min_effect")


def read_experiment(
    document: Mapping[str, Any], *, name: str, project: str, **more: str
) -> ExperimentSpec:
    """Return the specification of a declared experiment's `spec`; raise SpecificationError.

    Durations are texts like `90s`, `14d` or seconds, shares texts like `50%` or fractions of 1.
    """
    reader = _Reader()
    reader.only(document, KNOWN, "")
    spec = ExperimentSpec(
        name=name,
        model=str(document.get("model", "")),
        project=project,
        arms=[reader.arm(row, i) for i, row in enumerate(reader.rows(document, "arms"))],
        control=str(document.get("control", "")),
        metric=reader.metric(document.get("metric")),
        sticky_by=str(document.get("sticky_by", "")),
        salt=str(document.get("salt", "")),
        alpha=reader.share(document.get("alpha", 0.05), "alpha"),
        alpha_of_ratio=reader.share(document.get("alpha_of_ratio", 0.001), "alpha_of_ratio"),
        min_effect=reader.number(document.get("min_effect", 0), "min_effect", "must be a number"),
        min_duration_s=reader.seconds(document.get("min_duration", 0), "min_duration"),
        max_duration_s=reader.seconds(document.get("max_duration", "14d"), "max_duration"),
        poll_s=reader.seconds(document.get("poll", 0), "poll"),
        group=str(document.get("group", "")),
        guard=reader.guard(document.get("guard", {})),
        segment=reader.segment(document["segment"]) if "segment" in document else Segment(),
        **more,
    )
    require_sound(spec, reader.problems)
    return spec


class _Reader(Reader):
    """Turns a declared experiment into its parts."""

    def arm(self, row: Mapping[str, Any], i: int) -> Arm:
        at = f"arms[{i}]."
        self.only(row, {"name", "version", "share"}, at)
        return Arm(
            str(row.get("name", "")),
            self.whole(row.get("version", 0), f"{at}version"),
            round(self.share(row.get("share", 0), f"{at}share") * WHOLE),
        )

    def metric(self, row: Any) -> Metric:
        if not isinstance(row, Mapping):
            self.problems["metric"] = "must be an object with a name"
            return Metric("none")
        known = {"name", "source", "range", "expected", "higher_is_better"}
        self.only(row, known, "metric.")
        lower, upper = self.interval(row.get("range", [0, 1]), "metric.range")
        expected = row.get("expected", (lower + upper) / 2)
        return Metric(
            name=str(row.get("name", "")),
            source=str(row.get("source", RECORDED)),
            lower=lower,
            upper=upper,
            expected=self.number(expected, "metric.expected", "must be a number"),
            higher_is_better=bool(row.get("higher_is_better", True)),
        )

    def guard(self, row: Any) -> Guard:
        if not isinstance(row, Mapping):
            self.problems["guard"] = "must be an object"
            return Guard()
        self.only(row, set(GUARD_NUMBERS), "guard.")
        numbers: dict[str, Any] = {
            name: self.share(row[name], f"guard.{name}") for name in GUARD_NUMBERS if name in row
        }
        return Guard(**numbers)

    def segment(self, row: Any) -> Segment:
        text = "must be an object with a header and its values"
        if not isinstance(row, Mapping) or not row.get("header"):
            self.problems["segment"] = text
            return Segment()
        self.only(row, {"header", "values"}, "segment.")
        values = row.get("values")
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            self.problems["segment.values"] = "must be a list of texts"
            values = []
        return Segment(str(row["header"]), values)
