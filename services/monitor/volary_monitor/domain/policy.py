"""The declared monitor policy: truth join, windows, thresholds, who is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from volary_kit.documents import Declared, Strict, check_data
from volary_kit.durations import DurationUs, parse_us

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Severity = Literal["critical", "warning", "informational"]


class Truth(Strict):
    """How a record of a source becomes the label of a prediction.

    The label is 1 when the number is above the threshold, else 0; without a threshold it is the
    number itself. `give_up_after` (event time) is when a missing truth counts as never.
    """

    source: str
    subject_column: str
    label_column: str
    label_threshold: Finite | None = None
    give_up_after: DurationUs = parse_us("7d")


class Window(Strict):
    """Tumbling windows of event time; one closes `lateness` after its end has been seen."""

    length: Annotated[DurationUs, Field(gt=0)]
    lateness: DurationUs = parse_us("10m")
    min_predictions: Annotated[int, Field(ge=1)] = 1_000


class DriftRule(Strict):
    """A feature drifted when evidence (false-discovery control) and effect both say so.

    The effect is a mean shift in reference standard deviations or a PSI; either is enough.
    """

    false_discovery_rate: Annotated[float, Field(gt=0, lt=1)] = 0.05
    min_shift_sd: Positive = 0.25
    min_psi: Positive = 0.2
    min_features: Annotated[int, Field(ge=1)] = 1
    consecutive_windows: Annotated[int, Field(ge=1)] = 1
    resolve_windows: Annotated[int, Field(ge=1)] = 2


class QualityRule(Strict):
    """Bounds on a window's quality, judged once `min_coverage` of its truth is known.

    Increases and drops are against the version's own metrics at registration.
    """

    min_coverage: Share = 0.8
    min_labelled: Annotated[int, Field(ge=2)] = 200
    max_log_loss_increase: Positive | None = None
    max_auc_drop: Positive | None = None
    min_accuracy: Share | None = None
    consecutive_windows: Annotated[int, Field(ge=1)] = 1
    resolve_windows: Annotated[int, Field(ge=1)] = 2


class AlertRule(Strict):
    """How bad an alert of one kind is, and whether it asks for a retrain."""

    severity: Severity = "warning"
    retrain: bool = False


class Alerts(Strict):
    """One rule a kind of alert; a kind that is left out is informational."""

    drift: AlertRule = AlertRule()
    score_drift: AlertRule = AlertRule(severity="informational")
    quality: AlertRule = AlertRule(severity="critical")
    label_delay: AlertRule = AlertRule(severity="informational")
    volume: AlertRule = AlertRule(severity="informational")


class Retrain(Strict):
    """What an alert that asks for it starts, at most once a `cooldown` of event time."""

    training: str
    cooldown: DurationUs = parse_us("7d")


class ActionRule(Strict):
    """Where one recommended action of a decision goes, once a call: a web hook or a workflow.

    Both must be in the operator's allow-lists. A workflow gets the prediction's id.
    """

    action: Annotated[str, Field(min_length=1, max_length=256)]
    webhook: Annotated[str, Field(min_length=1, max_length=2_048)] | None = None
    workflow: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    task_queue: Annotated[str, Field(min_length=1, max_length=255)] | None = None

    @model_validator(mode="after")
    def _has_one_target(self) -> Self:
        if (self.webhook is None) == (self.workflow is None):
            raise ValueError("name a webhook or a workflow: one")
        if (self.workflow is None) != (self.task_queue is None):
            raise ValueError("a workflow needs its task_queue, and nothing else does")
        return self


class MonitorSpec(Strict):
    """What is watched, and what follows from a decision."""

    model: str
    truth: Truth
    window: Window
    drift: DriftRule = DriftRule()
    quality: QualityRule = QualityRule()
    alerts: Alerts = Alerts()
    retrain: Retrain | None = None
    actions: tuple[ActionRule, ...] = ()

    @field_validator("actions")
    @classmethod
    def _are_told_apart(cls, rules: tuple[ActionRule, ...]) -> tuple[ActionRule, ...]:
        if len({rule.action for rule in rules}) < len(rules):
            raise ValueError("an action goes to one place")
        return rules


class Monitor(Declared):
    """The whole document."""

    kind: Literal["Monitor"]  # pyright: ignore[reportIncompatibleVariableOverride] - narrowed
    spec: MonitorSpec


def read(data: Mapping[str, Any]) -> Monitor:
    """Return a document; raise InvalidArgument that names every part that is wrong."""
    return check_data(Monitor, data, "monitor policy")
