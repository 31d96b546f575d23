"""What an experiment may ask for; every problem names its field."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

from volary_workflows.declared import SpecificationError
from volary_workflows.experiment.messages import RECORDED, TRUTH, Arm, ExperimentSpec, Segment
from volary_workflows.judge.inputs import ERROR_RATE
from volary_workflows.rollout.messages import WHOLE
from volary_workflows.rollout.soundness import HEADER, ID, METRIC

LONGEST_S = 90 * 86_400.0
MOST_ARMS = 8
MOST_VALUES, LONGEST_VALUE = 64, 128  # of a segment, as gateway takes them
MOST_LOOKS = 20_000  # of a chain of runs, which hold 200 each
MOST_LOOKS_OF_ONE_RUN = 400  # each is a dozen events of a history that may hold tens of thousands
TRUTH_METRICS = ("accuracy", "brier")
SEGMENT_HEADER = re.compile(r"[a-z][a-z0-9-]{0,63}")
SALT = re.compile(r"[A-Za-z0-9_.-]{0,64}")
GROUP = re.compile(r"([a-z][a-z0-9-]{0,62})?")
NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")  # its id must fit into 64 characters beside the model's


def require_sound(spec: ExperimentSpec, problems: Mapping[str, str] | None = None) -> None:
    """Raise SpecificationError with everything that is wrong, after `problems` found before."""
    found = dict(problems or {})
    for field, text in _problems(spec):
        found.setdefault(field, text)
    if found:
        raise SpecificationError(found)


def _problems(spec: ExperimentSpec) -> Iterator[tuple[str, str]]:
    if not NAME.fullmatch(spec.name):
        yield "name", "must be an id of at most 31 letters, digits and -"
    if not ID.fullmatch(spec.model):
        yield "model", "must be a model id"
    if not ID.fullmatch(spec.project):
        yield "project", "must be a project id"
    yield from _arm_problems(spec.arms, spec.control)
    yield from _metric_problems(spec)
    yield from _number_problems(spec)
    yield from _time_problems(spec)
    if not HEADER.fullmatch(spec.sticky_by):
        yield "sticky_by", "must be the name of a request header, in lower case"
    yield from _segment_problems(spec.segment)
    if not SALT.fullmatch(spec.salt):
        yield "salt", "must be at most 64 letters, digits, _, . and -"
    if not GROUP.fullmatch(spec.group):
        yield "group", "must be an id"


def _segment_problems(segment: Segment) -> Iterator[tuple[str, str]]:
    values = segment.values
    if not segment.header:
        if values:
            yield "segment.header", "must be the name of a request header"
        return
    if not SEGMENT_HEADER.fullmatch(segment.header):
        yield "segment.header", "must be the name of a request header, in lower case"
    is_each_sound = all(0 < len(value) <= LONGEST_VALUE for value in values)
    if not 0 < len(values) <= MOST_VALUES or len(set(values)) != len(values) or not is_each_sound:
        yield "segment.values", f"must be 1 to {MOST_VALUES} different texts"


def _arm_problems(arms: list[Arm], control: str) -> Iterator[tuple[str, str]]:
    if not 2 <= len(arms) <= MOST_ARMS:
        yield "arms", f"must be 2 to {MOST_ARMS} arms"
    names, versions = set[str](), set[int]()
    for i, arm in enumerate(arms):
        if not ID.fullmatch(arm.name) or arm.name in names:
            yield f"arms[{i}].name", "must be an id of its own"
        if arm.version < 1 or arm.version in versions:
            yield f"arms[{i}].version", "must be a version number of its own"
        if not 0 < arm.weight < WHOLE:
            yield f"arms[{i}].share", "must be above 0 % and below 100 %"
        names.add(arm.name)
        versions.add(arm.version)
    if sum(arm.weight for arm in arms) != WHOLE:
        yield "arms", "their shares must sum to 100 %"
    if control not in names:
        yield "control", "must be the name of an arm"


def _metric_problems(spec: ExperimentSpec) -> Iterator[tuple[str, str]]:
    metric = spec.metric
    if metric.source not in (RECORDED, TRUTH):
        yield "metric.source", f"must be {RECORDED} or {TRUTH}"
    elif metric.source == TRUTH and metric.name not in TRUTH_METRICS:
        yield "metric.name", f"truth gives {' and '.join(TRUTH_METRICS)}"
    elif metric.source == TRUTH and spec.sticky_by:
        yield "metric.source", "truth knows calls, not callers: record outcomes, or draw each call"
    elif not METRIC.fullmatch(metric.name):
        yield "metric.name", "must be letters, digits and _, as outcomes are recorded"
    if not (math.isfinite(metric.lower) and math.isfinite(metric.upper)):
        yield "metric.range", "must be finite"
    elif metric.lower >= metric.upper:
        yield "metric.range", "must be two numbers, the lower first"
    elif not metric.lower <= metric.expected <= metric.upper:
        yield "metric.expected", "must be within the range"


def _number_problems(spec: ExperimentSpec) -> Iterator[tuple[str, str]]:
    if not 0 < spec.alpha < 1:
        yield "alpha", "must be between 0 and 1"
    if not 0 < spec.alpha_of_ratio < 1:
        yield "alpha_of_ratio", "must be between 0 and 1"
    if not 0 <= spec.min_effect < spec.metric.upper - spec.metric.lower:
        yield "min_effect", "must be 0 or more, and less than the range"
    guard = spec.guard
    if guard.kind != ERROR_RATE:
        yield "guard.kind", "must be error_rate: the metric is judged by the experiment itself"
    if not 0 < guard.alpha < 1:
        yield "guard.alpha", "must be between 0 and 1"
    if not 0 < guard.margin <= 100:
        yield "guard.margin", "must be above 0 and at most 100"
    if not 0 <= guard.ceiling < 1:
        yield "guard.ceiling", "must be a share below 1"
    if not 0 <= guard.min_effect < 1:
        yield "guard.min_effect", "must be a share below 1"


def _time_problems(spec: ExperimentSpec) -> Iterator[tuple[str, str]]:
    if not 0 < spec.max_duration_s <= LONGEST_S:
        yield "max_duration", "must be above 0 and at most 90 days"
        return
    if not 0 <= spec.min_duration_s <= spec.max_duration_s:
        yield "min_duration", "must be at most max_duration"
    most = MOST_LOOKS_OF_ONE_RUN if spec.group else MOST_LOOKS  # who holds a group does so in one
    least_s = max(0.05, spec.max_duration_s / most)
    if not (spec.poll_s == 0 or least_s <= spec.poll_s <= spec.max_duration_s):
        yield "poll", f"must be {least_s:g} s, for {most} looks, to max_duration"
