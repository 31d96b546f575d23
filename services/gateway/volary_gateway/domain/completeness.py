"""Whether every attempt that Envoy made has its record here.

Envoy counts the attempts of each cluster that ended; gateway counts their records. A poll of
Envoy's counter between two instants bounds the number of lost records from both sides, exactly
whenever no attempt ended in between. So a loss is found under load, too, and never guessed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

SETTLE_US = 2_000_000  # records are flushed every 0.1 s; a poll is judged when its own are here
KEPT_US = 3 * SETTLE_US
GUARD_US = 2_000  # the log's clock and the counter are read a moment apart
# Envoy's answer is two counters (begun, running) read one after the other: attempts that begin
# in between make a poll wrong, either way. A loss stays, so it shows in each of this many polls.
AGREEING = 3
# polls after which the least number of lost records that none of them excludes is believed: a
# guess too low calls a record lost that is not, never the other way round
PATIENCE = 20


@dataclass(frozen=True, slots=True)
class Poll:
    """Envoy's counter of ended attempts, read between two instants of the same clock."""

    began_us: int
    ended_us: int
    attempts: int


@dataclass(slots=True)
class Account:
    """One cluster's records against Envoy's counter."""

    records: int = 0
    # attempts without a record; before the first exact poll the two counts are not comparable
    known_lost: int | None = None
    recent: deque[int] = field(default_factory=deque)
    polls: deque[Poll] = field(default_factory=deque)
    bounds: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=AGREEING))
    # what every poll since counting began allows; the next one narrows it
    beginnings: list[tuple[int, int]] = field(default_factory=list)

    def note(self, ended_us: int) -> None:
        """Take one record."""
        self.records += 1
        self.recent.append(ended_us)
        while self.recent[0] + KEPT_US < ended_us:
            self.recent.popleft()

    def poll(self, poll: Poll) -> None:
        """Take a reading of the counter; it is judged once its records must be here."""
        if self.known_lost is None and poll.attempts == self.records == 0:
            self.known_lost = 0
        self.polls.append(poll)

    def has_since(self, instant_us: int) -> bool:
        """Say whether a record is of an attempt that ended at an instant or after it."""
        return any(ended >= instant_us - GUARD_US for ended in self.recent)

    def judge(self, now_us: int) -> Verdict:
        """Return what the polls that are old enough say."""
        found = Verdict()
        while self.polls and self.polls[0].ended_us + SETTLE_US <= now_us:
            found = self._judged(self.polls.popleft()).after(found)
        return found

    def forget(self) -> None:
        """Begin again: the counter is another process's, of which these were no attempts."""
        self.known_lost = None
        self.records = 0
        self.recent.clear()
        self.beginnings.clear()
        self.polls.clear()
        self.bounds.clear()

    def _judged(self, poll: Poll) -> Verdict:
        least = poll.attempts - self._until(poll.ended_us + GUARD_US)
        most = poll.attempts - self._until(poll.began_us - GUARD_US)
        if self.known_lost is None:
            self.known_lost = self._begun(least, most)
            return Verdict()
        self.bounds.append((least, most))
        if len(self.bounds) < AGREEING:
            return Verdict(is_clear=most <= self.known_lost)
        return self._agreed(self.known_lost, most)

    def _begun(self, least: int, most: int) -> int | None:
        """Return the number that every poll so far allows, None while there are several.

        One poll is exact when no attempt ended meanwhile; under load it takes a few.
        """
        self.beginnings.append((least, most))
        lowest = max(least for least, _ in self.beginnings)
        highest = min(most for _, most in self.beginnings)
        if lowest < highest and len(self.beginnings) < PATIENCE:
            return None
        self.beginnings.clear()
        return min(lowest, highest)

    def _agreed(self, known_lost: int, most: int) -> Verdict:
        """Return what all of the last polls say."""
        lowest = min(least for least, _ in self.bounds)
        highest = max(most for _, most in self.bounds)
        if highest < 0:  # more records than attempts
            self.forget()
            return Verdict(is_restarted=True)
        # records that came later than they ever should are not lost after all
        late = min(0, highest - known_lost)
        lost = max(late, lowest - known_lost)
        self.known_lost = known_lost + lost
        return Verdict(lost=lost, is_clear=most <= self.known_lost)

    def _until(self, instant_us: int) -> int:
        """Return how many of the records ended by an instant."""
        return self.records - sum(ended > instant_us for ended in self.recent)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`lost` records were found missing, or found again when negative.

    `is_clear`: for certain no further one is missing.

    `is_restarted`: the counter began anew, so what its process had not sent is unknown.
    """

    lost: int = 0
    is_clear: bool = False
    is_restarted: bool = False

    def after(self, earlier: Verdict) -> Verdict:
        """Join with what an earlier poll said."""
        return Verdict(
            self.lost + earlier.lost, self.is_clear, self.is_restarted or earlier.is_restarted
        )
