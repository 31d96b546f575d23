"""What a rollout may ask for; every problem names its field."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from volary_workflows.declared import SpecificationError
from volary_workflows.judge.inputs import (
    BUSINESS,
    ERROR_RATE,
    LATENCY_QUANTILE,
    PREDICTION_DISTRIBUTION,
    QUALITY,
    SCORED_KINDS,
    Guard,
)
from volary_workflows.rollout.freezing import WEEK_S
from volary_workflows.rollout.messages import (
    WHOLE,
    ApprovalPolicy,
    FreezeWindow,
    RolloutSpec,
    State,
    Step,
)

LONGEST_S = 30 * 86_400.0
MOST_STEPS = 50
MOST_APPROVERS = 20
YEAR_10_000_S = 253_402_300_800  # milliseconds by mistake are beyond it
MOST_WINDOWS = 100
MOST_HOOKS = 10
METRICS = {
    ERROR_RATE: ("error_rate", "errors"),
    LATENCY_QUANTILE: ("latency", "latency_quantile"),
    QUALITY: ("accuracy", "brier"),
    PREDICTION_DISTRIBUTION: ("score",),
}
PAIRED_KINDS = (QUALITY, PREDICTION_DISTRIBUTION)  # fed by the pairs of a shadow
KINDS = (*METRICS, BUSINESS)
METRIC = re.compile(r"[a-z][a-z0-9_]{0,62}")  # of the business: as its outcomes are recorded
ID = re.compile(r"[a-z][a-z0-9-]{0,62}")
HEADER = re.compile(r"[a-z0-9-]{0,64}")


def require_sound(
    spec: RolloutSpec, problems: Mapping[str, str] | None = None, *, is_new: bool = False
) -> None:
    """Raise SpecificationError with everything that is wrong, after `problems` found before.

    A rollout that `is_new` must also keep the rules that came after the first release: one in
    flight goes on under those that it was started with.
    """
    found = dict(problems or {})
    for field, text in [*_problems(spec), *(_unprotected(spec.guards) if is_new else [])]:
        found.setdefault(field, text)
    if found:
        raise SpecificationError(found)


def _problems(spec: RolloutSpec) -> Iterator[tuple[str, str]]:
    if not ID.fullmatch(spec.model):
        yield "model", "must be a model id"
    if not ID.fullmatch(spec.project):
        yield "project", "must be a project id"
    if spec.candidate < 1:
        yield "candidate", "must be a version number"
    yield from _stage_problems(spec)
    yield from _step_problems(spec.steps)
    yield from _guard_problems(spec)
    yield from _approval_problems(spec.approval)
    yield from _calendar_problems(spec)
    yield from _blast_problems(spec)
    yield from _hook_problems(spec)
    if spec.on_inconclusive not in ("extend", "rollback"):
        yield "on_inconclusive", "must be extend or rollback"
    if spec.on_breach != "rollback":
        yield "on_breach", "must be rollback"
    if not 0 <= spec.max_extensions <= 10_000:
        yield "max_extensions", "must be in 0..10000"
    if not HEADER.fullmatch(spec.sticky_by):
        yield "sticky_by", "must be the name of a request header, in lower case"


def _stage_problems(spec: RolloutSpec) -> Iterator[tuple[str, str]]:
    if not 0 < spec.bake_s <= LONGEST_S:
        yield "bake", "must be above 0 and at most 30 days"
    if not (spec.poll_s == 0 or 0.05 <= spec.poll_s <= 86_400):
        yield "poll", "must be 50 ms to 24 h"
    if spec.shadow is None:
        return
    if not 0 < spec.shadow.fraction <= 1:
        yield "shadow.fraction", "must be above 0 % and at most 100 %"
    if not 0 < spec.shadow.min_duration_s <= LONGEST_S:
        yield "shadow.min_duration", "must be above 0 and at most 30 days"
    if spec.shadow.min_requests < 1:
        yield "shadow.min_requests", "must be 1 or more"


def _step_problems(steps: list[Step]) -> Iterator[tuple[str, str]]:
    if not 1 <= len(steps) <= MOST_STEPS:
        yield "steps", f"must be 1 to {MOST_STEPS} steps"
    before = 0
    for i, step in enumerate(steps):
        if not 0 < step.weight <= WHOLE:
            yield f"steps[{i}].weight", "must be above 0 % and at most 100 %"
        elif step.weight <= before:
            yield f"steps[{i}].weight", "must be above the step before"
        if not 0 < step.min_duration_s <= LONGEST_S:
            yield f"steps[{i}].min_duration", "must be above 0 and at most 30 days"
        if step.min_requests < 1:
            yield f"steps[{i}].min_requests", "must be 1 or more"
        before = max(before, step.weight)


def _approval_problems(policy: ApprovalPolicy) -> Iterator[tuple[str, str]]:
    if policy.mode not in ("none", "manual", "required"):
        yield "approval.mode", "must be none, manual or required"
    if not 0 < policy.expire_s <= LONGEST_S:
        yield "approval.expire", "must be above 0 and at most 30 days"
    if not 1 <= policy.quorum <= MOST_APPROVERS:
        yield "approval.quorum", f"must be 1 to {MOST_APPROVERS}"
    elif policy.who and policy.quorum > len(set(policy.who)):
        yield "approval.quorum", "is more than the people who may approve"
    elif policy.quorum > 1 and policy.mode != "manual":
        yield "approval.quorum", "needs mode manual: the registry keeps one approval"
    if not 0 <= policy.valid_s <= 365 * 86_400:
        yield "approval.valid", "must be at most a year, 0 for ever"


def _calendar_problems(spec: RolloutSpec) -> Iterator[tuple[str, str]]:
    if not 0 <= spec.start_at_s < YEAR_10_000_S:
        yield "start_at", "must be seconds of an instant before the year 10000"
    if not 0 <= spec.cooldown_s <= LONGEST_S:
        yield "cooldown", "must be at most 30 days"
    if len(spec.freeze) > MOST_WINDOWS:
        yield "freeze", f"must be at most {MOST_WINDOWS} windows"
    for i, window in enumerate(spec.freeze):
        if not _is_window(window):
            yield f"freeze[{i}]", "must end after it starts, within a week when it is weekly"


def _is_window(window: FreezeWindow) -> bool:
    if window.weekly:
        is_in_week = 0 <= window.start_s < WEEK_S and 0 <= window.end_s < WEEK_S
        return is_in_week and window.start_s != window.end_s
    return 0 < window.start_s < window.end_s


def _blast_problems(spec: RolloutSpec) -> Iterator[tuple[str, str]]:
    radius = spec.blast_radius
    if radius.max_exposed_calls < 0:
        yield "blast_radius.max_exposed_calls", "must not be negative"
    if not 0 < radius.max_share <= WHOLE:
        yield "blast_radius.max_share", "must be above 0 % and at most 100 %"
        return
    for i, step in enumerate(spec.steps):
        if radius.max_share < step.weight <= WHOLE:
            yield f"steps[{i}].weight", "is above blast_radius.max_share"


def _hook_problems(spec: RolloutSpec) -> Iterator[tuple[str, str]]:
    if len(spec.notify) > MOST_HOOKS:
        yield "notify", f"must be at most {MOST_HOOKS} web hooks"
    for i, hook in enumerate(spec.notify):
        if not _is_url(hook.url):
            yield f"notify[{i}].url", "must be an http or https URL without credentials"
        if not set(hook.on) <= set(State):
            yield f"notify[{i}].on", "must be states of a rollout"


def _is_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    is_plain = not (parts.username or parts.password or parts.fragment) and port != 0
    return parts.scheme in ("http", "https") and bool(parts.hostname) and is_plain


def _guard_problems(spec: RolloutSpec) -> Iterator[tuple[str, str]]:
    if all(guard.kind == PREDICTION_DISTRIBUTION for guard in spec.guards):
        yield "guards", "must be 1 or more that can promote"
    for i, guard in enumerate([*spec.guards, *spec.dry_run]):
        at = f"guards[{i}]" if i < len(spec.guards) else f"dry_run[{i - len(spec.guards)}]"
        yield from _kind_problems(guard, at, spec)
        yield from _number_problems(guard, at)
    alphas = [guard.alpha for guard in spec.guards]
    if all(0 < alpha < 1 for alpha in alphas) and sum(alphas) >= 1:
        yield "guards", "their alphas must sum to less than 1"


def _unprotected(guards: list[Guard]) -> Iterator[tuple[str, str]]:
    """Yield what no guard of a plan would see: failures, or that the candidate is good enough."""
    if not any(guard.kind == ERROR_RATE for guard in guards):
        yield "guards", "one of kind error_rate must decide: nothing else sees calls that fail"
    if not any(guard.promotes and guard.kind != PREDICTION_DISTRIBUTION for guard in guards):
        yield "guards", "must be 1 or more that can promote"


def _kind_problems(guard: Guard, at: str, spec: RolloutSpec) -> Iterator[tuple[str, str]]:
    if guard.kind not in KINDS:
        yield f"{at}.kind", f"must be one of {', '.join(KINDS)}"
    elif guard.kind == BUSINESS:
        yield from _business_problems(guard, at, spec)
    elif guard.metric not in METRICS[guard.kind]:
        yield f"{at}.metric", f"must be one of {', '.join(METRICS[guard.kind])}"
    elif guard.kind == LATENCY_QUANTILE and spec.sticky_by:
        yield f"{at}.kind", "sticky users are compared by their first error only"
    elif guard.kind in PAIRED_KINDS and spec.shadow is None:
        yield f"{at}.kind", f"{guard.kind} is judged on the pairs of a shadow: declare one"
    if guard.kind in SCORED_KINDS and guard.margin >= 1:
        yield f"{at}.margin", "must be below 1: it is absolute, on a scale of 0 to 1"


def _business_problems(guard: Guard, at: str, spec: RolloutSpec) -> Iterator[tuple[str, str]]:
    if not METRIC.fullmatch(guard.metric):
        yield f"{at}.metric", "must be letters, digits and _, as outcomes are recorded"
    if not (math.isfinite(guard.lower) and math.isfinite(guard.upper)):
        yield f"{at}.range", "must be finite"
    elif guard.lower >= guard.upper:
        yield f"{at}.range", "must be two numbers, the lower first"
    same = [each for each in [*spec.guards, *spec.dry_run] if each.kind == BUSINESS]
    ranges = {(each.lower, each.upper) for each in same if each.metric == guard.metric}
    if len(ranges) > 1:
        yield f"{at}.range", f"must be the same in every guard on {guard.metric}"


def _number_problems(guard: Guard, at: str) -> Iterator[tuple[str, str]]:
    if not 0 < guard.alpha < 1:
        yield f"{at}.alpha", "must be between 0 and 1"
    if not 0 < guard.margin <= 100:
        yield f"{at}.margin", "must be above 0 and at most 100"
    if not 0 <= guard.ceiling < 1:
        yield f"{at}.ceiling", "must be a share below 1"
    if not 0 <= guard.min_effect < 1:
        yield f"{at}.min_effect", "must be a share below 1"
    if guard.limit_us < 0:
        yield f"{at}.limit", "must not be negative"
