"""Every call ends: a missing deadline becomes the default, a long one is cut."""

from __future__ import annotations

import math

from volary_kit.calls import Call
from volary_kit.errors import DeadlineExceeded
from volary_kit.policies import Policy
from volary_kit.rules.chain import Rule


class Deadline(Rule):
    """Set `call.deadline_s`; refuse a call whose time ran out in a queue."""

    def before(self, call: Call) -> None:
        call.deadline_s = deadline_of(call.policy, call.client_deadline_s, call.started_s)
        if call.remaining_s() <= 0:
            raise expired(call)


def deadline_of(policy: Policy, client_deadline_s: float | None, now_s: float) -> float:
    """Return the deadline that holds, on the monotonic clock; infinite if unbounded."""
    if policy.unbounded:
        return math.inf
    if client_deadline_s is None:
        return now_s + policy.default_deadline_s
    return min(client_deadline_s, now_s + policy.max_deadline_s)


def expired(call: Call) -> DeadlineExceeded:
    """Return the error of a call that took longer than its deadline."""
    return DeadlineExceeded(
        "DEADLINE_EXCEEDED",
        "the call did not finish within its deadline",
        {"method": call.method, "max_deadline_s": f"{call.policy.max_deadline_s:g}"},
    )
