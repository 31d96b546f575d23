"""What goes in and out of an experiment: plain dataclasses, ids as text.

Shares are in 1/10,000, durations and instants in seconds, instants since the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from volary_workflows.judge.inputs import Guard

RECORDED, TRUTH = "outcome", "truth"


class State(StrEnum):
    """Where an experiment is."""

    PENDING = "PENDING"
    VALIDATING = "VALIDATING"
    LOADING = "LOADING"
    STAGING = "STAGING"
    RUNNING = "RUNNING"
    RETURNING = "RETURNING"
    CONCLUDED = "CONCLUDED"
    STOPPED = "STOPPED"
    FAILED = "FAILED"


ENDS = (State.CONCLUDED, State.STOPPED, State.FAILED)


@dataclass(frozen=True)
class Arm:
    """A version and its share of the units."""

    name: str
    version: int
    weight: int


@dataclass(frozen=True)
class Metric:
    """What is compared: outcomes recorded with monitor, or `accuracy` and `brier` of its truth.

    A value is worth 0 at `lower` and 1 at `upper`, no less or more beyond. `expected` is the mean
    that is expected beforehand: a poor guess widens the interval, and no more.
    """

    name: str
    source: str = RECORDED
    lower: float = 0.0
    upper: float = 1.0
    expected: float = 0.5
    higher_is_better: bool = True


@dataclass(frozen=True)
class Segment:
    """Callers whose request header has one of some values; no header: everybody."""

    header: str = ""
    values: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ExperimentSpec:
    """One experiment, whole.

    Units are the values of the request header `sticky_by`, each of which stays with its arm; with
    no header every call is drawn by itself. `salt` decides who gets what: empty draws anew.
    `min_effect` is in units of the metric. Nothing is concluded before `min_duration_s` has
    passed; `max_duration_s` ends it whatever is known. At most one experiment of a `group` runs
    at a time. `guard` stops an arm whose calls fail; its alpha is shared by the treatments. Of a
    `segment`, whoever is not in it is in no arm: production answers, and nobody counts that.
    """

    name: str
    model: str
    arms: list[Arm]
    control: str
    metric: Metric
    project: str = "default"
    sticky_by: str = ""
    salt: str = ""
    alpha: float = 0.05
    alpha_of_ratio: float = 0.001
    min_effect: float = 0.0
    min_duration_s: float = 0.0
    max_duration_s: float = 14 * 86_400.0
    poll_s: float = 0.0
    group: str = ""
    guard: Guard = field(default_factory=Guard)
    reason: str = ""
    requested_by: str = ""
    segment: Segment = field(default_factory=Segment)

    @property
    def production(self) -> Arm:
        """The control: the arm that also answers whoever is in no arm."""
        return next(arm for arm in self.arms if arm.name == self.control)

    @property
    def treatments(self) -> list[Arm]:
        """The arms that are held against the control."""
        return [arm for arm in self.arms if arm.name != self.control]


@dataclass(frozen=True)
class ArmLook:
    """One arm in units of the metric; for treatments the interval of the difference as well."""

    name: str
    version: int
    units: int
    outcomes: int
    mean: float
    verdict: str
    difference: float
    low: float
    high: float
    more_units: int


@dataclass(frozen=True)
class ExperimentLook:
    """One look of the judge; `report` is the registry's key once it is stored, and then final.

    `generation` is the traffic's now, above the experiment's own when somebody else wrote.
    """

    verdict: str = ""
    winner: str = ""
    reason_codes: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    arms: list[ArmLook] = field(default_factory=list)
    report: str = ""
    generation: int = 0


@dataclass(frozen=True)
class Change:
    """A change of state."""

    state: str
    at_s: float
    reason: str = ""


@dataclass
class Progress:
    """Everything that an experiment knows; what continues as new hands it on."""

    experiment: str = ""
    request_seed: str = ""
    state: str = State.PENDING
    generation: int = 0
    written: list[int] = field(default_factory=list)
    is_loaded: bool = False
    digests: list[str] = field(default_factory=list)
    began_s: float = 0.0
    stop: str = ""
    looks: int = 0
    look: ExperimentLook = field(default_factory=ExperimentLook)
    history: list[Change] = field(default_factory=list)
    heard: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Experiment:
    """The workflow's input; `progress` is set when it continues as new, after so many looks."""

    spec: ExperimentSpec
    progress: Progress | None = None
    looks_a_run: int = 200


@dataclass(frozen=True)
class ExperimentStatus:
    """The answer of the query `status`, and the workflow's result."""

    experiment: str
    name: str
    model: str
    state: str
    reason: str
    arms: list[Arm]
    control: str
    metric: str
    generation: int
    began_s: float
    ends_s: float
    look: ExperimentLook
    history: list[Change]
    heard: list[str] = field(default_factory=list)
    segment: Segment = field(default_factory=Segment)
