"""Dynamic batching of one version in one thread of its own.

Callers' threads put a `Ticket` into the queue and wait on it. The batching thread closes a batch
when it is full, when its oldest ticket has waited long enough, or when the earliest deadline
would be missed by waiting on; it takes tickets by priority, then by deadline, the earliest first.
What expired or was cancelled is dropped before it runs, and a batch that fails is run again ticket
by ticket, so that a poisoned one fails alone.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
from volary_kit.clock import Clock
from volary_kit.errors import Cancelled, DeadlineExceeded, ResourceExhausted, Unavailable

from volary_inference.domain.in_place import SHORT_S, TRIAL_S, InPlace
from volary_inference.domain.run_times import RunTimes
from volary_inference.domain.share import Share

log = logging.getLogger(__name__)
TOO_LATE = "the call could not finish within its deadline"
LEAST_RETRY_S = 0.001
# a lower number goes first, whatever its deadline; within one the earliest deadline does
FIRST, NORMAL, LAST = 1, 2, 3
Arrays = Mapping[str, np.ndarray]


class Runner(Protocol):
    """Run a graph on arrays by input name; return arrays by output name."""

    def run(self, feeds: Arrays) -> dict[str, np.ndarray]:
        """Return every output; raise RunFailed when the graph does."""
        ...


class RunFailed(Exception):
    """The graph failed on this input; the text is for the log."""


class Closing(StrEnum):
    """Why a batch was closed."""

    SIZE = "size"
    DELAY = "delay"
    DEADLINE = "deadline"
    DRAIN = "drain"


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """Limits of a batch and of its queue."""

    max_rows: int = 64
    max_delay_s: float = 0.0  # a busy thread gathers the next batch anyhow
    max_queued_rows: int = 65_536


class BatchObserver(Protocol):
    """Learn what the batching thread does; called from that thread."""

    def ran(self, rows: int, seconds: float, closing: Closing) -> None:
        """Note one run."""
        ...

    def dropped(self, reason: str) -> None:
        """Note a ticket that never ran: `expired` or `cancelled`."""
        ...


class Ticket:
    """One call's rows in the queue, and where its caller waits."""

    __slots__ = (
        "_answered",
        "batch_rows",
        "deadline_s",
        "enqueued_s",
        "error",
        "inputs",
        "is_cancelled",
        "outputs",
        "priority",
        "queue_s",
        "rows",
        "shape",
    )

    def __init__(
        self, inputs: Arrays, rows: int, deadline_s: float, priority: int = NORMAL
    ) -> None:
        self.inputs = inputs
        self.rows = rows
        self.deadline_s = deadline_s
        self.priority = priority
        # calls run together when everything but the row count agrees
        self.shape = tuple(array.shape[1:] for array in inputs.values())
        self.enqueued_s = 0.0
        self.queue_s = 0.0
        self.batch_rows = 0
        self.is_cancelled = False
        self.outputs: dict[str, np.ndarray] = {}
        self.error: Exception | None = None
        # held until there is an answer: a tenth of the work of an Event, once a call
        self._answered = threading.Lock()
        self._answered.acquire()

    def cancel(self) -> None:
        """Give up: nobody waits any more."""
        self.is_cancelled = True
        self._wake()

    def finish(self, outputs: dict[str, np.ndarray]) -> None:
        """Hand the caller its rows."""
        self.outputs = outputs
        self._wake()

    def fail(self, error: Exception) -> None:
        """Hand the caller an error."""
        self.error = error
        self._wake()

    def wait(self, timeout_s: float) -> dict[str, np.ndarray]:
        """Return the outputs; raise what failed, DeadlineExceeded when time runs out."""
        if not self._answered.acquire(timeout=min(timeout_s, threading.TIMEOUT_MAX)):
            self.is_cancelled = True
            raise DeadlineExceeded("DEADLINE_EXCEEDED", "the model did not answer in time")
        self._wake()  # whoever asks again finds the same answer
        if self.error is not None:
            raise self.error
        if self.is_cancelled:
            raise Cancelled("CANCELLED", "the caller went away")
        return self.outputs

    def _wake(self) -> None:
        # a cancellation and an answer may come at once; the second release is one too many
        with suppress(RuntimeError):
            self._answered.release()


class Batcher:
    """The queue of one version and the thread that empties it."""

    def __init__(
        self,
        name: str,
        runner: Runner,
        policy: BatchPolicy,
        clock: Clock,
        observer: BatchObserver,
        *,
        is_batched: bool,
        run_times: RunTimes | None = None,
    ) -> None:
        self.policy = policy
        self.run_times = run_times or RunTimes()
        self._runner = runner
        self._clock = clock
        self._observer = observer
        self._is_batched = is_batched
        self._changed = threading.Condition()
        self._queue: list[tuple[int, float, int, Ticket]] = []
        self._order = itertools.count()
        self._queued_rows = 0
        self._oldest_s = 0.0
        self._busy_until_s = 0.0
        self._is_closing = False
        self._in_place = InPlace()
        self._share = Share()
        self._turn = threading.Lock()  # held while the graph runs, by whichever thread runs it
        self._thread = threading.Thread(target=self._work, name=f"batch {name}", daemon=True)
        self._thread.start()

    def put(self, ticket: Ticket) -> None:
        """Queue a ticket; raise ResourceExhausted when it could not finish in time."""
        with self._changed:
            if self._is_closing:
                raise Unavailable("VERSION_DRAINING", "the version goes away", retry_after_s=0.1)
            now_s = self._clock.monotonic_s()
            self._admit(ticket, now_s)
            ticket.enqueued_s = now_s
            if not self._queue:
                self._oldest_s = now_s
            entry = (ticket.priority, ticket.deadline_s, next(self._order), ticket)
            heapq.heappush(self._queue, entry)
            self._queued_rows += ticket.rows
            self._changed.notify()

    def run_now(self, ticket: Ticket) -> bool:
        """Run a short ticket in its caller's thread when nothing else waits or runs; say whether.

        The ticket then has its answer: `wait` returns at once.
        """
        rows = ticket.rows
        is_alone = not self._queue and not self.policy.max_delay_s and rows <= self.policy.max_rows
        now_s = self._clock.monotonic_s()
        if not is_alone or not self._is_short(rows, ticket.deadline_s, now_s):
            return False
        if not self._turn.acquire(blocking=False):
            return False
        try:
            if self._is_closing:
                return False
            ticket.batch_rows = rows
            self._run([ticket], Closing.DELAY)
        finally:
            self._turn.release()
        return True

    def _is_short(self, rows: int, deadline_s: float, now_s: float) -> bool:
        expected_s = self._in_place.expected_s(rows)
        if expected_s is not None:
            return expected_s <= SHORT_S and now_s + expected_s <= deadline_s
        predicted_s = self._predicted_s(rows, (FIRST, deadline_s), now_s)  # nothing else waits
        return predicted_s <= TRIAL_S and now_s + predicted_s <= deadline_s

    def predicted_s(self, ticket: Ticket) -> float:
        """Return the seconds until a ticket that is queued now would be answered."""
        with self._changed:
            return self._predicted_s(ticket.rows, _place(ticket), self._clock.monotonic_s())

    def close(self, timeout_s: float | None = None) -> bool:
        """Take no more, answer what is queued; say whether all was answered in time."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return False
        with self._turn:  # a run in its caller's thread is a short one
            return True

    def _admit(self, ticket: Ticket, now_s: float) -> None:
        if self._queued_rows + ticket.rows > self.policy.max_queued_rows and self._queue:
            drain_s = self._run_s(self._queued_rows, now_s)
            raise _overloaded("the queue of this version is full", drain_s)
        predicted_s = self._predicted_s(ticket.rows, _place(ticket), now_s)
        left_s = ticket.deadline_s - now_s
        # somebody has to show how long a run takes
        is_first = not self._queue and self._busy_until_s <= now_s
        if predicted_s > (left_s if is_first else self._share.of(left_s)):
            raise _overloaded(TOO_LATE, predicted_s)

    def _predicted_s(self, rows: int, place: tuple[int, float], now_s: float) -> float:
        """Only what has priority or is due earlier runs before; what runs now has to end first."""
        ahead = sum(entry[3].rows for entry in self._queue if entry[:2] <= place)
        busy_s = max(0.0, self._busy_until_s - now_s)
        return busy_s + self._run_s(ahead + rows, now_s)

    def _run_s(self, rows: int, now_s: float) -> float:
        full, rest = divmod(rows, self.policy.max_rows)
        run_s = full * self.run_times.predict_s(self.policy.max_rows, now_s) if full else 0.0
        return run_s + self.run_times.predict_s(rest, now_s)

    def _work(self) -> None:
        while True:
            batch, closing = self._next()
            if not batch:
                return
            with self._turn:
                self._run(batch, closing)

    def _next(self) -> tuple[list[Ticket], Closing]:
        """Wait for a batch and take it; an empty one ends the thread."""
        with self._changed:
            while True:
                now_s = self._clock.monotonic_s()
                self._drop_expired(now_s)
                closing, wait_s = self._closing(now_s)
                if closing is None:
                    self._changed.wait(wait_s)
                    continue
                batch = self._take(now_s)
                if batch or (self._is_closing and not self._queue):
                    self._begin(batch, now_s)
                    return batch, closing

    def _closing(self, now_s: float) -> tuple[Closing | None, float | None]:
        """Say why the batch closes now, else how long to wait at most."""
        if self._is_closing:
            return Closing.DRAIN, None
        if not self._queue:
            return None, None
        if self._queued_rows >= self.policy.max_rows or not self._is_batched:
            return Closing.SIZE, None
        late_s = self._oldest_s + self.policy.max_delay_s
        if late_s <= now_s:
            return Closing.DELAY, None
        rows = min(self._queued_rows, self.policy.max_rows)
        earliest_s = min(entry[1] for entry in self._queue)  # of less than a batch
        due_s = earliest_s - self.run_times.predict_s(rows, now_s)
        if due_s <= now_s:
            return Closing.DEADLINE, None
        return None, min(late_s, due_s) - now_s

    def _drop_expired(self, now_s: float) -> None:
        """Drop what is over and, while more than a batch waits, what would be answered too late.

        The earliest deadline first, with too much to do, is to run each call when it is already
        too late for it: it makes room for others.
        """
        rows = self.policy.max_rows if self._is_batched else 1
        is_backlog = self._queued_rows >= rows and len(self._queue) > 1
        run_s = self.run_times.predict_s(rows, now_s) if is_backlog else 0.0
        while self._queue:
            due_s = self._queue[0][1]
            if due_s > now_s and due_s >= now_s + run_s:
                return
            self._drop(self._pop(), "expired", is_late=due_s > now_s)

    def _take(self, now_s: float) -> list[Ticket]:
        """Take what goes first and fits into one run; at least one ticket of any size."""
        batch: list[Ticket] = []
        left: list[tuple[int, float, int, Ticket]] = []
        rows = 0
        while self._queue:
            entry = heapq.heappop(self._queue)
            ticket = entry[3]
            if ticket.is_cancelled:
                self._queued_rows -= ticket.rows
                self._drop(ticket, "cancelled")
            elif ticket.deadline_s <= now_s:  # it waited behind others with priority
                self._queued_rows -= ticket.rows
                self._drop(ticket, "expired")
            elif not batch or self._joins(batch[0], ticket, rows):
                batch.append(ticket)
                rows += ticket.rows
                self._queued_rows -= ticket.rows
            else:
                left.append(entry)
                if rows >= self.policy.max_rows or not self._is_batched:
                    break
        for entry in left:
            heapq.heappush(self._queue, entry)
        if self._queue:
            self._oldest_s = min(entry[3].enqueued_s for entry in self._queue)
        return batch

    def _joins(self, first: Ticket, ticket: Ticket, rows: int) -> bool:
        fits = rows + ticket.rows <= self.policy.max_rows
        return self._is_batched and fits and ticket.shape == first.shape

    def _begin(self, batch: Sequence[Ticket], now_s: float) -> None:
        rows = sum(ticket.rows for ticket in batch)
        self._busy_until_s = now_s + self.run_times.predict_s(rows, now_s)
        for ticket in batch:
            ticket.queue_s = now_s - ticket.enqueued_s
            ticket.batch_rows = rows

    def _pop(self) -> Ticket:
        ticket = heapq.heappop(self._queue)[3]
        self._queued_rows -= ticket.rows
        return ticket

    def _drop(self, ticket: Ticket, reason: str, *, is_late: bool = False) -> None:
        self._observer.dropped(reason)
        if reason == "expired":
            self._share.saw(0, 1)
        if ticket.is_cancelled:
            return
        if is_late:
            ticket.fail(_overloaded(TOO_LATE, LEAST_RETRY_S))
        else:
            text = "the call's time ran out while it waited for a batch"
            ticket.fail(DeadlineExceeded("DEADLINE_EXCEEDED", text))

    def _run(self, batch: Sequence[Ticket], closing: Closing) -> None:
        try:
            self._run_once(batch, closing)
        except Exception as error:  # noqa: BLE001 - the worker loop: its callers hear of any failure
            if len(batch) == 1:
                log.warning("a run failed: %s", error)
                batch[0].fail(error)
                return
            for ticket in batch:
                ticket.batch_rows = ticket.rows
                self._run([ticket], closing)

    def _run_once(self, batch: Sequence[Ticket], closing: Closing) -> None:
        began_s = self._clock.monotonic_s()
        outputs = self._runner.run(_joined(batch))
        ended_s = self._clock.monotonic_s()
        seconds = ended_s - began_s
        rows = sum(ticket.rows for ticket in batch)
        parts = _parted(batch, outputs) if self._is_batched else [outputs]
        self.run_times.record(rows, seconds, ended_s)
        self._busy_until_s = ended_s
        late = sum(ticket.deadline_s <= ended_s for ticket in batch)
        self._share.saw(len(batch) - late, late)
        self._observer.ran(rows, seconds, closing)
        for ticket, part in zip(batch, parts, strict=True):
            ticket.finish(part)
        self._in_place.ran(rows, seconds)


def _place(ticket: Ticket) -> tuple[int, float]:
    return ticket.priority, ticket.deadline_s


def _overloaded(text: str, retry_after_s: float) -> ResourceExhausted:
    return ResourceExhausted("OVERLOADED", text, retry_after_s=max(LEAST_RETRY_S, retry_after_s))


def _joined(batch: Sequence[Ticket]) -> Arrays:
    if len(batch) == 1:
        return batch[0].inputs
    names = batch[0].inputs
    return {name: np.concatenate([ticket.inputs[name] for ticket in batch]) for name in names}


def _parted(batch: Sequence[Ticket], outputs: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Cut the rows apart, one part a ticket; raise RunFailed if they are not as many."""
    rows = sum(ticket.rows for ticket in batch)
    if any(array.shape[:1] != (rows,) for array in outputs.values()):
        raise RunFailed(f"the graph gave another number of rows than the {rows} it was given")
    if len(batch) == 1:
        return [outputs]
    ends = list(itertools.accumulate(ticket.rows for ticket in batch))
    return [
        {name: array[end - ticket.rows : end] for name, array in outputs.items()}
        for ticket, end in zip(batch, ends, strict=True)
    ]
