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
    STAGING = "STAGING"
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


ENDS = (State.PROMOTED, State.ROLLED_BACK, State.ABORTED, State.FAILED, State.SUPERSEDED)


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
    """Who must let a candidate through.

    `manual` waits for `quorum` people of `who` (anybody when empty) until `expire_s` have passed;
    `required` refuses a candidate that is not approved in the registry beforehand. An approval
    in the registry counts for `valid_s`, 0 for ever.
    """

    mode: str = "none"
    who: list[str] = field(default_factory=list)
    expire_s: float = 7 * 86_400.0
    quorum: int = 1
    valid_s: float = 0.0


@dataclass(frozen=True)
class FreezeWindow:
    """A time in which no candidate is given more calls; going back is always allowed.

    Either from `start_s` to `end_s`, instants since the epoch, or, with `weekly`, the same hours
    of every week, both in seconds since Monday 00:00 UTC; `end_s` below `start_s` wraps.
    """

    start_s: float
    end_s: float
    weekly: bool = False


@dataclass(frozen=True)
class BlastRadius:
    """The most harm a candidate may do before it has passed: share of calls, and calls.

    `max_share` bounds the steps; with `max_exposed_calls` answered and no PASS for the last step
    the rollout turns back. 0 calls means no bound.
    """

    max_share: int = WHOLE
    max_exposed_calls: int = 0


@dataclass(frozen=True)
class Notification:
    """A web hook that is told when the rollout enters one of the states `on`."""

    url: str
    on: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RolloutSpec:
    """One rollout, whole.

    A step that is due and INCONCLUSIVE is extended by its own duration, `max_extensions` times,
    or rolls back at once. `poll_s` 0 looks 100 times a step, every 0.25 to 60 s. `sticky_by` is
    the request header that keeps a user with a version; it allows error guards only.
    `dry_run` guards are judged and shown, and decide nothing. `start_at_s` 0 starts at once;
    within `cooldown_s` of a rollout that went back the next one waits.
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
    start_at_s: float = 0.0
    cooldown_s: float = 0.0
    freeze: list[FreezeWindow] = field(default_factory=list)
    blast_radius: BlastRadius = field(default_factory=BlastRadius)
    dry_run: list[Guard] = field(default_factory=list)
    notify: list[Notification] = field(default_factory=list)


@dataclass(frozen=True)
class Look:
    """One look of the judge; `evaluation` is the registry's key of what it was decided on.

    `calls` are the candidate's in this step; `generation` is the traffic's now, above the
    rollout's own when somebody else wrote. `dry_run` is what the guards say that decide nothing.
    """

    verdict: str = ""
    reason_codes: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    more_calls: int = 0
    calls: int = 0
    exposed_calls: int = 0
    evaluation: str = ""
    generation: int = 0
    dry_run: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ShadowDiff:
    """What the paired answers of a shadow say, in short; `evaluation` is where all of it is.

    `agreement` is the share of pairs with the same decision, `score_shift` the mean of candidate
    less baseline.
    """

    pairs: int = 0
    agreement: float = 0.0
    score_shift: float = 0.0
    summary: list[str] = field(default_factory=list)
    evaluation: str = ""


@dataclass(frozen=True)
class Approved:
    """One person's yes, or no, with what they said."""

    principal: str
    comment: str = ""
    at_s: float = 0.0


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
    approvals: list[Approved] = field(default_factory=list)
    rejection: Approved | None = None
    held_s: float = 0.0
    shadow_diff: ShadowDiff | None = None
    began_us: int = 0  # which of the model's rollouts it is: a later one has a higher number
    heard: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Rollout:
    """The workflow's input; `progress` is set when it continues as new.

    It does so after `looks_a_run` looks, so that a worker which takes it over reads a short
    history: some 10 events a look.
    """

    spec: RolloutSpec
    progress: Progress | None = None
    looks_a_run: int = 200


@dataclass(frozen=True)
class RolloutStatus:
    """The answer of the query `status`, and the workflow's result.

    `heard` are the requests that had their effect, each as `{word}/{request_id}`.
    """

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
    approvals: list[Approved] = field(default_factory=list)
    rejection: Approved | None = None
    shadow_diff: ShadowDiff | None = None
    heard: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Command:
    """What a person asks of a rollout by an update.

    Whoever cannot tell whether it was heard says it again with the same `request_id`: it has its
    effect once and is answered as the first time, whatever state that has led to.
    """

    principal: str = ""
    comment: str = ""
    request_id: str = ""
