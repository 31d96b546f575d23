"""When an alert is raised, kept, renewed and resolved."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

Kind = Literal["drift", "score_drift", "quality", "label_delay", "volume"]


class Step(Enum):
    """What one window means for the alert of one kind."""

    NOTHING = "nothing"
    RAISE = "raise"
    KEEP = "keep"
    RENEW = "renew"
    RESOLVE = "resolve"


@dataclass(frozen=True)
class Streaks:
    """Consecutive windows up to now that passed, or kept, their bounds; one of them is 0."""

    bad: int
    good: int


@dataclass(frozen=True)
class Hysteresis:
    """How many windows in a row it takes to raise and to resolve."""

    raise_after: int
    resolve_after: int


def streaks(history: list[bool]) -> Streaks:
    """Return the streak that the newest windows form; `history` is newest first, True is bad."""
    if not history:
        return Streaks(0, 0)
    newest = history[0]
    length = next((i for i, bad in enumerate(history) if bad is not newest), len(history))
    return Streaks(length, 0) if newest else Streaks(0, length)


def step(streak: Streaks, hysteresis: Hysteresis, *, is_firing: bool, is_renewable: bool) -> Step:
    """Decide; `is_renewable` says that a firing alert may ask for a retrain once more."""
    if is_firing:
        if streak.good >= hysteresis.resolve_after:
            return Step.RESOLVE
        if streak.bad == 0:
            return Step.NOTHING
        return Step.RENEW if is_renewable else Step.KEEP
    return Step.RAISE if streak.bad >= hysteresis.raise_after else Step.NOTHING


def may_retrain(last_us: int | None, window_end_us: int, cooldown_us: int) -> bool:
    """Say whether a retrain may be asked for, by event time since the last one."""
    return last_us is None or window_end_us >= last_us + cooldown_us
