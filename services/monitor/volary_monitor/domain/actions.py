"""What follows from a decision: which declared action goes where, how often it is tried."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from volary_kit.errors import InvalidArgument

from volary_monitor.domain.policy import ActionRule

FIRST_US, LONGEST_US = 1_000_000, 300_000_000  # between attempts: twice as long each time


@dataclass(frozen=True)
class Decided:
    """A prediction whose declared band recommends an action."""

    prediction_id: str
    project: str
    model: str
    version: int
    action: str
    reason_codes: Sequence[str]
    score: float | None
    subject: str
    event_us: int

    def told(self) -> dict[str, Any]:
        """Return what a web hook or a workflow is told."""
        return asdict(self) | {"reason_codes": list(self.reason_codes)}


@dataclass(frozen=True)
class Target:
    """Where an action goes: the address of a web hook, or a workflow and its queue."""

    webhook: str = ""
    workflow: str = ""
    task_queue: str = ""

    @property
    def name(self) -> str:
        """How the operator's list of workflows names it: `Type@queue`."""
        return f"{self.workflow}@{self.task_queue}"


def target_of(rules: Sequence[ActionRule], action: str) -> Target | None:
    """Return where an action goes, None where nobody declared it."""
    for rule in rules:
        if rule.action == action:
            return Target(rule.webhook or "", rule.workflow or "", rule.task_queue or "")
    return None


def delay_us(attempts: int) -> int:
    """Return how long to wait after so many attempts that failed."""
    return int(min(LONGEST_US, FIRST_US * 2 ** min(attempts - 1, 20)))


@dataclass(frozen=True)
class Allowed:
    """What the operator allows: addresses to call, workflows as `Type@queue` to start."""

    may_call: Callable[[str], bool] = lambda _: False
    may_start: frozenset[str] = frozenset()

    def require(self, rules: Sequence[ActionRule]) -> None:
        """Raise InvalidArgument for the first rule whose target is not allowed."""
        for i, rule in enumerate(rules):
            at = f"monitor_policy.document.spec.actions[{i}]"
            if rule.webhook and not self.may_call(rule.webhook):
                text = "its origin is not in the allow-list of web hooks"
                raise InvalidArgument("WEBHOOK_NOT_ALLOWED", text, field=f"{at}.webhook")
            if rule.workflow and f"{rule.workflow}@{rule.task_queue}" not in self.may_start:
                text = "it is not in the allow-list of workflows, Type@task-queue"
                raise InvalidArgument("WORKFLOW_NOT_ALLOWED", text, field=f"{at}.workflow")
