"""What the activities of an experiment take and return: plain dataclasses, ids as text."""

from __future__ import annotations

from dataclasses import dataclass, field

from volary_workflows.experiment.messages import Arm, ExperimentSpec, Segment
from volary_workflows.rollout.tasks import Subject


@dataclass(frozen=True)
class Preflight:
    """What validation found: the traffic's generation, and the digest of each arm, in order."""

    generation: int
    digests: list[str]
    problems: list[str]


@dataclass(frozen=True)
class Split:
    """A write of traffic: the shares of these arms, the control last, for whom it is."""

    subject: Subject
    arms: list[Arm]
    step: str
    experiment: str
    expected_generation: int
    request_id: str
    sticky_by: str
    salt: str
    reason: str
    segment: Segment = field(default_factory=Segment)


@dataclass(frozen=True)
class ExperimentTask:
    """A look to take; it is stored, for good, when it concludes or `is_last`."""

    spec: ExperimentSpec
    experiment: str
    written: list[int]
    is_due: bool
    is_last: bool = False
