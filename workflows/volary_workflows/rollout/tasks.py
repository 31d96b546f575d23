"""What the activities of a rollout take and return: plain dataclasses, ids as text.

Shares are in 1/10,000, durations and instants in seconds, instants since the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from volary_workflows.judge.inputs import Guard
from volary_workflows.rollout.messages import Look, TrafficStep


@dataclass(frozen=True)
class Subject:
    """A version of a model: what the small activities are about.

    `rollout_generation` says which rollout asks, as gateway fences it; 0 for none.
    """

    project: str
    model: str
    version: int
    digest: str = ""
    rollout_generation: int = 0


@dataclass(frozen=True)
class Preflight:
    """What validation found: the baseline 0 when nothing is in production yet.

    `approved_at_s` is when the registry's approval was given, `cooling_s` how long the cooldown
    after the last rollout of the model still lasts.
    """

    digest: str
    baseline: int
    generation: int
    approval: str
    approved_by: str
    thresholds_us: list[int]
    problems: list[str]
    approval_comment: str = ""
    approved_at_s: float = 0.0
    cooling_s: float = 0.0


@dataclass(frozen=True)
class StagingReport:
    """What the candidate answered before anybody's traffic: calls made, and what was wrong."""

    calls: int
    problems: list[str]


@dataclass(frozen=True)
class ShadowTask:
    """A shadow whose answers are to be paired with the served ones, and stored under `key`."""

    subject: Subject
    baseline: int
    rollout: str
    key: str


@dataclass(frozen=True)
class Notice:
    """What a web hook is told; `id` is the same on every attempt."""

    url: str
    id: str
    rollout: str
    project: str
    model: str
    candidate: int
    baseline: int
    state: str
    reason: str
    at_s: float


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
    dry_run: list[Guard] = field(default_factory=list)
