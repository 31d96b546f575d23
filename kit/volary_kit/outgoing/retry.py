"""When a public client tries again: the same request with the same request id."""

from __future__ import annotations

import random
from dataclasses import dataclass

from volary_kit.errors import Aborted, ResourceExhausted, Unavailable, VolaryError


@dataclass(frozen=True)
class Retry:
    """Exponential back-off with full jitter (Brooker, AWS 2015); a server's own hint goes first.

    `attempts` counts the first try; delays are in seconds.
    """

    attempts: int = 4
    first_s: float = 0.05
    longest_s: float = 2.0
    factor: float = 2.0

    def delay_s(self, attempt: int, error: VolaryError, left_s: float | None) -> float | None:
        """Return how long to wait after failed attempt number `attempt`, None to give up."""
        if attempt >= self.attempts or not may_retry(error):
            return None
        bound_s = min(self.longest_s, self.first_s * self.factor ** (attempt - 1))
        delay_s = random.uniform(0, bound_s) + (error.retry_after_s or 0.0)  # noqa: S311 - jitter
        return None if left_s is not None and delay_s >= left_s else delay_s


NO_RETRY = Retry(attempts=1)


def may_retry(error: VolaryError) -> bool:
    """Say whether the same call may succeed later: unavailable, or told when to come back."""
    if isinstance(error, Unavailable):
        return True
    return isinstance(error, Aborted | ResourceExhausted) and error.retry_after_s is not None
