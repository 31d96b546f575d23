"""The declared training: one document says everything that a run depends on."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field
from volary_kit.documents import Declared, Strict, check_data
from volary_kit.durations import DurationUs
from volary_kit.serving import Serving

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
    rollout: dict[str, Any]  # checked by the workflow that carries it out


class Training(Declared):
    """The whole document."""

    kind: Literal["Training"]  # pyright: ignore[reportIncompatibleVariableOverride] - narrowed
    spec: TrainingSpec


def read(data: Mapping[str, Any]) -> Training:
    """Return a document; raise InvalidArgument that names every part that is wrong."""
    return check_data(Training, data, "training")
