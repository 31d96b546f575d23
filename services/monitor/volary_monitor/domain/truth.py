"""From a record of a source to the truth about a prediction."""

from __future__ import annotations

import math
from dataclasses import dataclass

from volary_monitor.domain.policy import Truth as TruthRule

Scalar = float | int | str | bool | None


@dataclass(frozen=True)
class Truth:
    """What turned out about a subject, and when it was known (UTC microseconds)."""

    subject: str
    label: float
    known_us: int


def truth_of(rule: TruthRule, fields: dict[str, Scalar], known_us: int) -> Truth | None:
    """Return the truth in a record, None if it has no subject or no usable number."""
    subject, number = fields.get(rule.subject_column), fields.get(rule.label_column)
    if subject is None or isinstance(number, str) or number is None:
        return None
    value = float(number)
    if not math.isfinite(value):
        return None
    if rule.label_threshold is not None:
        value = 1.0 if value > rule.label_threshold else 0.0
    return Truth(str(subject), value, known_us)
