"""What goes in and out of a rollout and its activities: plain dataclasses, ids as text.

Shares are in 1/10,000, durations and instants in seconds, instants since the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from volary_workflows.judge.inputs import Guard

WHOLE = 10_000


class State(StrEnum):
    """Where a rollout is; paused is a flag beside it."""

    PENDING = "PENDING"
    VALIDATING = "VALIDATING"
    AWAITING_APPROVAL = "AWAITING_APPROVAL"
    LOADING = "LOADING"
    SHADOW = "SHADOW"
    CANARY = "CANARY"
    PROGRESSING = "PROGRESSING"
    BAKING = "BAKING"
    PROMOTED = "PROMOTED"
    ROLLING_BACK = "ROLLING_BACK"
    ROLLED_BACK = "ROLLED_BACK"
    ABORTED = "ABORTED"
    FAILED = "FAILED"
    SUPERSEDED = "SUPERSEDED"


@dataclass(frozen=True)
class ShadowStage:
    """Mirror `fraction` of the calls until the candidate has answered `min_requests` copies."""

    fraction: float = 1.0
    min_duration_s: float = 60.0
    min_requests: int = 100


@dataclass(frozen=True)
class Step:
    """Give the candidate `weight` until it has answered `min_requests` calls in this step."""

    weight: int
    min_duration_s: float = 600.0
    min_requests: int = 100


@dataclass(frozen=True)
class ApprovalPolicy:
    """`manual` waits for a person of `who` (anybody when empty) until `expire_s` have passed."""

    mode: str = "none"
    who: list[str] = field(default_factory=list)
    expire_s: float = 7 * 86_400.0


@dataclass(frozen=True)
class RolloutSpec:
    """One rollout, whole.

    A step that is due and INCONCLUSIVE is extended by its own duration, `max_extensions` times,
    or rolls back at once. `poll_s` 0 looks 100 times a step, every 0.25 to 60 s. `sticky_by` is
    the request header that keeps a user with a version; it allows error guards only.
    """

    model: str
    candidate: int
    project: str = "default"
    shadow: ShadowStage | None = None
    steps: list[Step] = field(default_factory=list)
    bake_s: float = 86_400.0
    guards: list[Guard] = field(default_factory=lambda: [Guard()])
    approval: ApprovalPolicy = field(default_factory=ApprovalPolicy)
    on_inconclusive: str = "extend"
    max_extensions: int = 20
    on_breach: str = "rollback"
    sticky_by: str = ""
    poll_s: float = 0.0
    reason: str = ""
    requested_by: str = ""


@dataclass(frozen=True)
class Look:
    """One look of the judge; `evaluation` is the registry's key of what it was decided on.

    `calls` are the candidate's in this step; `generation` is the traffic's now, above the
    rollout's own when somebody else wrote.
    """

    verdict: str = ""
    reason_codes: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    more_calls: int = 0
    calls: int = 0
    exposed_calls: int = 0
    evaluation: str = ""
    generation: int = 0


@dataclass(frozen=True)
class TrafficStep:
    """One write of traffic by the rollout: what evidence of its generation compares."""

    step: str
    generation: int
    weight: int
    shadow: int = 0


@dataclass(frozen=True)
class Transition:
    """A change of state."""

    state: str
    at_s: float
    reason: str = ""


@dataclass
class Progress:
    """Everything that a rollout knows; what continues as new hands it on."""

    state: str = State.PENDING
    rollout: str = ""
    request_seed: str = ""
    stage: int = 0
    stage_began_s: float = 0.0
    doubted_s: float = 0.0
    baseline: int = 0
    digest: str = ""
    generation: int = 0
    thresholds_us: list[int] = field(default_factory=list)
    written: list[TrafficStep] = field(default_factory=list)
    is_loaded: bool = False
    is_exposed: bool = False
    is_closing: bool = False
    paused: str = ""
    approved_by: str = ""
    rejected_by: str = ""
    stop: str = ""
    stop_reason: str = ""
    skips: int = 0
    acknowledged: list[str] = field(default_factory=list)
    looks: int = 0
    look: Look = field(default_factory=Look)
    evaluations: list[str] = field(default_factory=list)
    history: list[Transition] = field(default_factory=list)


@dataclass(frozen=True)
class Rollout:
    """The workflow's input; `progress` is set when it continues as new."""

    spec: RolloutSpec
    progress: Progress | None = None


@dataclass(frozen=True)
class RolloutStatus:
    """The answer of the query `status`, and the workflow's result."""

    rollout: str
    model: str
    candidate: int
    baseline: int
    state: str
    reason: str
    step: str
    weight: int
    generation: int
    paused: str
    approved_by: str
    look: Look
    evaluations: list[str]
    history: list[Transition]


@dataclass(frozen=True)
class Command:
    """What a person asks of a rollout by an update."""

    principal: str = ""
    comment: str = ""


@dataclass(frozen=True)
class Subject:
    """A version of a model: what the small activities are about."""

    project: str
    model: str
    version: int
    digest: str = ""


@dataclass(frozen=True)
class Preflight:
    """What validation found: the baseline 0 when nothing is in production yet."""

    digest: str
    baseline: int
    generation: int
    approval: str
    approved_by: str
    thresholds_us: list[int]
    problems: list[str]


@dataclass(frozen=True)
class ApprovalDecision:
    """A decision to record in the registry."""

    subject: Subject
    approved: bool
    principal: str
    comment: str
    request_id: str


@dataclass(frozen=True)
class TrafficChange:
    """A write of traffic; `weight` is the candidate's share, the rest is the baseline's."""

    subject: Subject
    baseline: int
    weight: int
    shadow: int
    step: str
    rollout: str
    cause: str
    expected_generation: int
    request_id: str
    sticky_by: str = ""
    production: int = 0
    reason: str = ""


@dataclass(frozen=True)
class TrafficState:
    """What traffic is after a write, or now; `rollout` is the id of the one that wrote it."""

    generation: int
    cause: str
    rollout: str


@dataclass(frozen=True)
class JudgeTask:
    """A look to take; it is stored when it decides or differs from `last`."""

    subject: Subject
    baseline: int
    rollout: str
    step: str
    guards: list[Guard]
    written: list[TrafficStep]
    thresholds_us: list[int]
    sticky: bool
    acknowledged: list[str]
    is_due: bool
    look: int
    last: Look
