"""What goes in and out of a retrain and its activities: plain dataclasses, ids as text.

Instants are UTC microseconds since the epoch, in event time or known-at time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from volary_workflows.judge.inputs import GateRule
from volary_workflows.rollout.messages import RolloutSpec, RolloutStatus

US = 1_000_000


class Outcome(StrEnum):
    """How a retrain ended."""

    RUNNING = "RUNNING"
    PROMOTED = "PROMOTED"
    REFUSED_BY_GATE = "REFUSED_BY_GATE"
    NOT_PROMOTED = "NOT_PROMOTED"
    ROLLOUT_IN_PROGRESS = "ROLLOUT_IN_PROGRESS"
    RETRAIN_IN_PROGRESS = "RETRAIN_IN_PROGRESS"
    REGISTERED = "REGISTERED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class Stage(StrEnum):
    """What a retrain is doing."""

    READING = "READING"
    PULLING = "PULLING"
    BUILDING = "BUILDING"
    TRAINING = "TRAINING"
    EVALUATING = "EVALUATING"
    ROLLING_OUT = "ROLLING_OUT"
    DONE = "DONE"


@dataclass(frozen=True)
class Retrain:
    """The workflow's input.

    `until_us` is the instant that the world is seen from: nothing known later is used; 0 means
    everything that the sources have. With `roll_out` false it stops at a registered, gated version.
    """

    training: str
    project: str = "default"
    trigger: str = "manual"
    until_us: int = 0
    alert: str = ""
    reason: str = ""
    requested_by: str = ""
    roll_out: bool = True


@dataclass(frozen=True)
class TrainingPlan:
    """A declared training as the workflow needs it; `rollout` has candidate 1 as a place holder.

    `spine` is the declaration of what to predict for; `floors` are least values of the
    candidate's own metrics.
    """

    model: str
    feature_set: str
    sources: list[str]
    spine: dict[str, Any]
    start_us: int
    holdout_us: int
    gate: GateRule
    floors: dict[str, float]
    rollout: RolloutSpec


@dataclass(frozen=True)
class PullTask:
    """A source to pull up to an instant."""

    project: str
    source: str
    until_us: int
    request_id: str


@dataclass(frozen=True)
class Pulled:
    """What a pull left: the snapshot and the exclusive bound on `known_at` of its rows."""

    source: str
    snapshot: str
    accepted_rows: int
    known_until_us: int


@dataclass(frozen=True)
class BuildTask:
    """A training set to build over [start, end) of event time, from what was known before."""

    project: str
    feature_set: str
    spine: dict[str, Any]
    start_us: int
    end_us: int
    known_until_us: int
    snapshots: dict[str, str]
    request_id: str


@dataclass(frozen=True)
class Built:
    """A training set."""

    name: str
    rows: int


@dataclass(frozen=True)
class TrainTask:
    """A run to make."""

    project: str
    training: str
    training_set: str
    trigger: str
    request_id: str


@dataclass(frozen=True)
class Trained:
    """A run that became a version."""

    run: str
    version: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class GateTask:
    """A candidate to hold against production on rows after its training window."""

    project: str
    model: str
    candidate: int
    training_set: str
    start_us: int
    end_us: int
    rule: GateRule
    floors: dict[str, float]
    key: str
    request_id: str


@dataclass(frozen=True)
class GateLook:
    """What the gate said; `baseline` is 0 when nothing was in production to compare with."""

    verdict: str
    reason_codes: list[str]
    reasons: list[str]
    evaluation: str
    baseline: int
    rows: int


@dataclass(frozen=True)
class Begun:
    """A stage's operation, by what it is asked with: found whether or not its reply came."""

    project: str
    service: str
    method: str
    request_id: str


@dataclass(frozen=True)
class Abandoned:
    """An operation that was given up, empty when none had begun.

    `run` and `version` are what a run left that was done before it heard of it.
    """

    operation: str = ""
    run: str = ""
    version: int = 0


@dataclass(frozen=True)
class RetrainStatus:
    """The answer of the query `status`, and the workflow's result: what happened, in order.

    `undone` is what was taken back of a retrain that was given up.
    """

    outcome: str = Outcome.RUNNING
    stage: str = Stage.READING
    reason: str = ""
    trigger: str = ""
    model: str = ""
    until_us: int = 0
    pulled: list[Pulled] = field(default_factory=list)
    training_set: str = ""
    rows: int = 0
    run: str = ""
    version: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    gate: GateLook | None = None
    rollout: RolloutStatus | None = None
    undone: list[str] = field(default_factory=list)
