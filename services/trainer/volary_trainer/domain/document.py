"""The declared training: one document says everything that a run depends on."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from volary_kit.documents import Declared, Strict, check_data
from volary_kit.durations import DurationUs
from volary_kit.serving import Serving

AS_TRAINED = "fp32"
Share = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Width = Annotated[int, Field(ge=1, le=4_096)]


class Spine(Strict):
    """The rows to learn from, and which of their columns mean what."""

    source: str
    subject_column: str
    time_column: str
    entity_columns: dict[str, str]
    request_columns: dict[str, str] = Field(default_factory=dict)
    label_column: str
    label_threshold: Annotated[float, Field(allow_inf_nan=False)]


class Window(Strict):
    """The stretch of event time; the last `holdout` of a set is kept for the gate."""

    start: datetime
    holdout: DurationUs


class Network(Strict):
    """A multi-layer perceptron."""

    hidden: Annotated[list[Width], Field(min_length=1, max_length=8)]
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Optimiser(Strict):
    """AdamW (Loshchilov and Hutter, 2019)."""

    learning_rate: Annotated[float, Field(gt=0, le=10)]
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 1_024
    epochs: Annotated[int, Field(ge=1, le=1_000)]


class Evaluation(Strict):
    """How the result is measured; validation rows are the latest of the training window."""

    decision_threshold: Share = 0.5
    validation_share: Share = 0.1


class Gate(Strict):
    """What the result must be as good as; the workflow's judge reads it."""

    metric: Literal["log_loss", "brier", "error"]
    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    alpha: Share
    min_rows: Annotated[int, Field(ge=1)] = 1_000
    method: Literal["normal", "empirical_bernstein"] = "normal"
    floors: dict[str, float] = Field(default_factory=dict)


class Variant(Strict):
    """The same weights in smaller numbers, and what it may cost.

    `tolerance` bounds the error of a score on the golden rows, `margin` how much worse the mean
    loss on the validation rows may be.
    """

    precision: Literal["fp16", "int8"]
    tolerance: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
    metric: Literal["log_loss", "brier"] = "log_loss"
    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class TrainingSpec(Strict):
    """Data, network, optimiser, seeds, evaluation, gate, serving and rollout."""

    model: str
    feature_set: str
    sources: Annotated[list[str], Field(min_length=1)]
    spine: Spine
    window: Window
    network: Network
    optimiser: Optimiser
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    threads: Annotated[int, Field(ge=1, le=64)] = 1
    evaluation: Evaluation = Evaluation()
    gate: Gate
    serving: Serving = Serving()
    variants: list[Variant] = Field(default_factory=list)
    # which numbers are served; a variant that does not pass its gates ends the run
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    rollout: dict[str, Any]  # checked by the workflow that carries it out

    @model_validator(mode="after")
    def _declares_what_it_serves(self) -> Self:
        declared = [variant.precision for variant in self.variants]
        if len(set(declared)) < len(declared):
            raise ValueError("variants: a precision is declared once")
        if self.precision not in ("fp32", *declared):
            raise ValueError(f"precision: {self.precision} is not among the variants")
        return self


class Training(Declared):
    """The whole document."""

    kind: Literal["Training"]  # pyright: ignore[reportIncompatibleVariableOverride] - narrowed
    spec: TrainingSpec


def read(data: Mapping[str, Any]) -> Training:
    """Return a document; raise InvalidArgument that names every part that is wrong."""
    return check_data(Training, data, "training")
