from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from volary_inference.domain.batching import (
    FIRST,
    LAST,
    NORMAL,
    Batcher,
    BatchPolicy,
    Closing,
    RunFailed,
    Ticket,
)
from volary_inference.domain.in_place import SHORT_S, TRIAL_S, TRIALS, InPlace
from volary_inference.domain.run_times import RunTimes
from volary_inference.domain.share import Share
from volary_inference.domain.statistics import Statistics
from volary_kit.clock import Clock, SystemClock
from volary_kit.errors import Cancelled, DeadlineExceeded, ResourceExhausted, Unavailable

CLOCK = SystemClock()
POISON = -1.0
LONG_S = 30.0


class Doubling:
    """Doubles its input; `gate` holds every run until it is opened."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.batches: list[list[float]] = []

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.entered.set()
        assert self.gate.wait(LONG_S)
        x = feeds["x"]
        self.batches.append(x[:, 0].tolist())
        if (x == POISON).any():
            raise RunFailed("poison")
        return {"y": x * 2}


class Rig:
    def __init__(
        self, policy: BatchPolicy, run_times: RunTimes | None = None, clock: Clock = CLOCK
    ) -> None:
        self._clock = clock
        self.runner, self.statistics = Doubling(), Statistics()
        self.batcher = Batcher(
            "test",
            self.runner,
            policy,
            clock,
            self.statistics,
            is_batched=True,
            run_times=run_times,
        )

    def ticket(self, *values: float, timeout_s: float = LONG_S, priority: int = NORMAL) -> Ticket:
        rows = np.array(values, np.float32).reshape(-1, 1)
        deadline_s = self._clock.monotonic_s() + timeout_s
        return Ticket({"x": rows}, len(values), deadline_s, priority)

    def put(self, *values: float, timeout_s: float = LONG_S, priority: int = NORMAL) -> Ticket:
        ticket = self.ticket(*values, timeout_s=timeout_s, priority=priority)
        self.batcher.put(ticket)
        return ticket

    def hold(self) -> Ticket:
        """Occupy the batching thread until the gate opens."""
        self.runner.gate.clear()
        self.runner.entered.clear()
        ticket = self.put(0.5)
        assert self.runner.entered.wait(LONG_S)
        return ticket


def answer(ticket: Ticket) -> list[float]:
    return ticket.wait(LONG_S)["y"][:, 0].tolist()


@contextmanager
def rigged(policy: BatchPolicy | None = None, run_times: RunTimes | None = None) -> Iterator[Rig]:
    rig = Rig(policy or BatchPolicy(max_rows=4), run_times)
    yield rig
    rig.runner.gate.set()
    assert rig.batcher.close(LONG_S)


@pytest.fixture
def rig() -> Iterator[Rig]:
    with rigged() as rig:
        yield rig


def test_calls_that_wait_together_run_together_and_get_their_own_rows(rig: Rig) -> None:
    rig.hold()
    tickets = [rig.put(1.0), rig.put(2.0, 3.0), rig.put(4.0)]
    rig.runner.gate.set()
    assert [answer(ticket) for ticket in tickets] == [[2.0], [4.0, 6.0], [8.0]]
    assert rig.runner.batches == [[0.5], [1.0, 2.0, 3.0, 4.0]]
    assert [ticket.batch_rows for ticket in tickets] == [4, 4, 4]


def test_the_earliest_deadline_runs_first(rig: Rig) -> None:
    rig.hold()
    late = [rig.put(float(i), timeout_s=100 + i) for i in range(1, 5)]
    urgent = rig.put(9.0, timeout_s=20)
    rig.runner.gate.set()
    for ticket in (*late, urgent):
        answer(ticket)
    assert rig.runner.batches == [[0.5], [9.0, 1.0, 2.0, 3.0], [4.0]]


def test_priority_goes_before_deadlines(rig: Rig) -> None:
    rig.hold()
    tickets = [
        rig.put(1.0, timeout_s=20, priority=LAST),
        rig.put(2.0, timeout_s=60),
        rig.put(3.0, timeout_s=50),
        rig.put(4.0, timeout_s=100, priority=FIRST),
        rig.put(5.0, timeout_s=90, priority=FIRST),
    ]
    rig.runner.gate.set()
    for ticket in tickets:
        answer(ticket)
    assert rig.runner.batches == [[0.5], [5.0, 4.0, 3.0, 2.0], [1.0]]


def test_what_expired_behind_others_with_priority_never_runs(rig: Rig) -> None:
    rig.hold()
    doomed = rig.put(7.0, timeout_s=0.05, priority=LAST)
    first = rig.put(1.0, priority=FIRST)
    with pytest.raises(DeadlineExceeded):
        doomed.wait(0.06)
    rig.runner.gate.set()
    assert answer(first) == [2.0]
    assert answer(rig.put(3.0)) == [6.0]
    assert [7.0] not in rig.runner.batches
    assert 7.0 not in rig.runner.batches[1]


def test_what_expired_in_the_queue_never_runs(rig: Rig) -> None:
    rig.hold()
    doomed, other = rig.put(7.0, timeout_s=0.05), rig.put(1.0)
    with pytest.raises(DeadlineExceeded):
        doomed.wait(0.06)
    rig.runner.gate.set()
    assert answer(other) == [2.0]
    assert [7.0] not in rig.runner.batches
    assert rig.statistics.snapshot().dropped == {"expired": 1}


def test_what_was_cancelled_never_runs(rig: Rig) -> None:
    rig.hold()
    gone, other = rig.put(7.0), rig.put(1.0)
    gone.cancel()
    rig.runner.gate.set()
    assert answer(other) == [2.0]
    with pytest.raises(Cancelled):
        gone.wait(LONG_S)
    assert rig.runner.batches == [[0.5], [1.0]]
    assert rig.statistics.snapshot().dropped == {"cancelled": 1}


def test_a_poisoned_row_fails_alone(rig: Rig) -> None:
    rig.hold()
    good, poisoned, fine = rig.put(1.0), rig.put(POISON), rig.put(3.0)
    rig.runner.gate.set()
    assert answer(good) == [2.0]
    assert answer(fine) == [6.0]
    with pytest.raises(RunFailed):
        poisoned.wait(LONG_S)


def test_a_call_larger_than_a_batch_runs_alone(rig: Rig) -> None:
    rig.hold()
    large, small = rig.put(*[1.0] * 9), rig.put(2.0)
    rig.runner.gate.set()
    assert answer(large) == [2.0] * 9
    assert answer(small) == [4.0]
    assert sorted(len(batch) for batch in rig.runner.batches) == [1, 1, 9]


def test_other_shapes_do_not_share_a_run(rig: Rig) -> None:
    rig.hold()
    narrow = rig.put(1.0)
    wide = Ticket({"x": np.ones((1, 2), np.float32)}, 1, CLOCK.monotonic_s() + LONG_S)
    rig.batcher.put(wide)
    rig.runner.gate.set()
    assert answer(narrow) == [2.0]
    assert wide.wait(LONG_S)["y"].tolist() == [[2.0, 2.0]]


def test_the_counters_say_why_batches_were_closed() -> None:
    rig = Rig(BatchPolicy(max_rows=2, max_delay_s=0.03))
    began_s = time.monotonic()
    assert answer(rig.put(1.0)) == [2.0]
    assert time.monotonic() - began_s >= 0.03
    pair = [rig.put(1.0), rig.put(2.0)]
    for ticket in pair:
        answer(ticket)
    assert rig.batcher.close(LONG_S)
    assert rig.statistics.snapshot().closings == {"delay": 1, "size": 1}


def test_a_near_deadline_closes_the_batch_before_the_delay_is_over() -> None:
    times = RunTimes()
    times.record(1, 0.02, CLOCK.monotonic_s())
    rig = Rig(BatchPolicy(max_rows=64, max_delay_s=LONG_S), times)
    ticket = rig.put(1.0, timeout_s=0.5)
    assert answer(ticket) == [2.0]
    assert rig.batcher.close(LONG_S)
    assert rig.statistics.snapshot().closings == {Closing.DEADLINE.value: 1}


def test_closing_answers_what_is_queued_and_takes_no_more() -> None:
    rig = Rig(BatchPolicy(max_rows=64, max_delay_s=LONG_S))
    ticket = rig.put(1.0)
    assert rig.batcher.close(LONG_S)
    assert answer(ticket) == [2.0]
    with pytest.raises(Unavailable):
        rig.put(2.0)
    assert rig.statistics.snapshot().closings == {"drain": 1}


def test_what_cannot_finish_in_time_is_refused_at_once_with_a_hint() -> None:
    times = RunTimes()
    times.record(4, 1.0, CLOCK.monotonic_s())
    rig = Rig(BatchPolicy(max_rows=4), times)
    rig.hold()
    waiting = [rig.put(float(i)) for i in range(4)]
    with pytest.raises(ResourceExhausted) as caught:
        rig.put(9.0, timeout_s=0.5)
    assert caught.value.reason == "OVERLOADED"
    assert caught.value.retry_after_s is not None
    assert caught.value.retry_after_s > 0.5
    rig.runner.gate.set()
    for ticket in waiting:
        answer(ticket)
    assert rig.batcher.close(LONG_S)


def test_a_full_queue_refuses() -> None:
    rig = Rig(BatchPolicy(max_rows=2, max_queued_rows=3))
    rig.hold()
    waiting = rig.put(1.0, 2.0)
    with pytest.raises(ResourceExhausted):
        rig.put(3.0, 4.0)
    rig.runner.gate.set()
    answer(waiting)
    assert rig.batcher.close(LONG_S)


def test_thousands_of_mixed_calls_each_get_their_own_rows() -> None:
    rig = Rig(BatchPolicy(max_rows=16))
    draw = random.Random(7)
    sizes = [draw.randint(1, 5) for _ in range(4_000)]

    def call(index: int) -> bool:
        values = [float(index * 8 + i) for i in range(sizes[index])]
        return answer(rig.put(*values)) == [2 * value for value in values]

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(call, range(len(sizes))))
    assert rig.batcher.close(LONG_S)


class Stopped:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def now_us(self) -> int:
        return int(self.now_s * 1_000_000)

    def monotonic_s(self) -> float:
        return self.now_s


def test_only_what_goes_before_a_call_is_counted_against_it() -> None:
    clock, run_times = Stopped(), RunTimes()
    run_times.record(1, 1.0, clock.monotonic_s())
    rig = Rig(BatchPolicy(max_rows=1), run_times, clock)
    rig.hold()
    for value in range(4):
        rig.put(float(value), timeout_s=10)
    with pytest.raises(ResourceExhausted):
        rig.put(7.0, 8.0, 9.0, timeout_s=10)
    with pytest.raises(ResourceExhausted):
        rig.put(7.0, timeout_s=5, priority=LAST)
    rig.put(7.0, timeout_s=5, priority=FIRST)
    rig.runner.gate.set()
    assert rig.batcher.close(LONG_S)
    assert rig.runner.batches[:2] == [[0.5], [7.0]]


def test_what_is_refused_for_its_run_time_is_tried_again_after_a_while() -> None:
    clock, times = Stopped(), RunTimes()
    times.record(1, 0.4, clock.now_s)  # the machine was busy when this version was warmed
    rig = Rig(BatchPolicy(max_rows=4), times, clock)
    with pytest.raises(ResourceExhausted):
        rig.put(1.0, timeout_s=0.05)
    clock.now_s += 30  # nothing ran meanwhile: nobody learned anything
    assert answer(rig.put(1.0, timeout_s=0.05)) == [2.0]
    assert answer(rig.put(1.0, timeout_s=0.05)) == [2.0]
    assert rig.batcher.close(LONG_S)


def test_a_queue_as_long_as_the_deadline_takes_no_more() -> None:
    clock, times = Stopped(), RunTimes()
    times.record(4, 0.01, clock.now_s)
    rig = Rig(BatchPolicy(max_rows=4), times, clock)
    held = rig.hold()
    admitted: list[Ticket] = []
    with pytest.raises(ResourceExhausted):
        while True:
            admitted.append(rig.put(1.0, timeout_s=0.06))
    # 10 ms for what runs now, 10 for each 4 rows, within three fifths of the time
    assert len(admitted) == 8
    rig.runner.gate.set()
    for ticket in (held, *admitted):
        answer(ticket)
    assert rig.batcher.close(LONG_S)


def test_calls_that_come_too_late_shorten_the_queue_and_those_in_time_lengthen_it() -> None:
    share = Share()
    longest_s = share.of(1.0)
    share.saw(1, 3)
    share.saw(0, 1)
    assert 0.2 < share.of(1.0) < 0.8 * longest_s
    for _ in range(100):
        share.saw(0, 1)
    assert share.of(1.0) == pytest.approx(0.2)
    for _ in range(1_000):
        share.saw(1, 0)
    assert share.of(1.0) == longest_s


def test_a_batcher_whose_calls_come_too_late_takes_fewer() -> None:
    def admitted(late: int) -> int:
        clock, times = Stopped(), RunTimes()
        times.record(4, 0.01, clock.now_s)
        rig = Rig(BatchPolicy(max_rows=4), times, clock)
        held = rig.hold()
        doomed = [rig.put(9.0, timeout_s=0.04) for _ in range(late)]
        clock.now_s += 0.05
        rig.runner.gate.set()
        answer(held)
        for each in doomed:
            with pytest.raises(DeadlineExceeded):
                each.wait(LONG_S)
        times.record(4, 0.01, clock.now_s)
        rig.hold()
        count = 0
        with suppress(ResourceExhausted):
            while True:
                rig.put(1.0, timeout_s=0.5)
                count += 1
        rig.runner.gate.set()
        assert rig.batcher.close(LONG_S)
        return count

    assert 0 < admitted(3) < admitted(0)


def test_run_times_answer_for_sizes_that_never_ran() -> None:
    times = RunTimes()
    assert times.predict_s(10, 0.0) == 0.0
    times.record(4, 0.4, 0.0)
    assert times.predict_s(1, 0.0) == 0.4
    assert times.predict_s(8, 0.0) == 0.8
    times.record(4, 0.9, 0.0)
    assert times.predict_s(3, 0.0) == pytest.approx(0.55)


def test_one_slow_run_counts_for_little_and_a_lasting_change_is_followed() -> None:
    times = RunTimes()
    for _ in range(5):
        times.record(1, 0.001, 0.0)
    times.record(1, 2.0, 0.0)
    assert times.predict_s(1, 0.0) < 0.002
    for _ in range(40):
        times.record(1, 2.0, 0.0)
    assert times.predict_s(1, 0.0) > 1.9


def test_what_does_not_run_is_thought_to_be_faster_down_to_the_fastest_seen() -> None:
    times = RunTimes()
    times.record(1, 0.001, 0.0)
    for _ in range(60):
        times.record(1, 1.0, 0.0)
    assert times.predict_s(1, 0.1) == pytest.approx(1.0, abs=0.01)
    assert times.predict_s(1, 0.6) == pytest.approx(0.5, abs=0.01)
    assert 5e-5 < times.predict_s(1, 8.0) < 1e-4  # the mean would be at 2e-5
    assert times.predict_s(1, 1_000.0) < 1e-6


def test_many_rows_take_no_longer_than_as_many_runs_of_few() -> None:
    times = RunTimes()
    times.record(64, 5.0, 0.0)
    times.record(1, 0.001, 0.2)
    assert times.predict_s(64, 0.0) == 5.0  # it is fresh
    assert times.predict_s(64, 0.2) == pytest.approx(0.064)


class TestRunNow:
    """A short run stays in its caller's thread when nothing else is going on."""

    def test_a_short_run_has_its_answer_at_once(self) -> None:
        with rigged() as rig:
            ticket = rig.ticket(3.0)
            assert rig.batcher.run_now(ticket)
            assert ticket.wait(0.0)["y"].tolist() == [[6.0]]
            assert (ticket.batch_rows, ticket.queue_s) == (1, 0.0)
            assert rig.statistics.snapshot().rows == 1

    def test_a_poisoned_one_fails_its_caller(self) -> None:
        with rigged() as rig:
            ticket = rig.ticket(POISON)
            assert rig.batcher.run_now(ticket)
            with pytest.raises(RunFailed):
                ticket.wait(0.0)

    def test_not_while_another_runs(self) -> None:
        with rigged() as rig:
            rig.runner.gate.clear()
            running = rig.put(1.0)
            assert rig.runner.entered.wait(LONG_S)
            assert not rig.batcher.run_now(rig.ticket(2.0))
            rig.runner.gate.set()
            assert running.wait(LONG_S)["y"].tolist() == [[2.0]]

    def test_not_what_takes_long(self) -> None:
        class Slow(RunTimes):
            def predict_s(self, rows: int, *_: object) -> float:
                return TRIAL_S * 2

        with rigged(run_times=Slow()) as rig:
            assert not rig.batcher.run_now(rig.ticket(1.0))

    def test_not_what_could_not_finish_in_time(self) -> None:
        with rigged() as rig:
            assert not rig.batcher.run_now(rig.ticket(1.0, timeout_s=-1.0))

    def test_not_where_batches_are_waited_for(self) -> None:
        with rigged(BatchPolicy(max_delay_s=0.01)) as rig:
            assert not rig.batcher.run_now(rig.ticket(1.0))

    def test_not_once_the_version_goes_away(self) -> None:
        with rigged() as rig:
            assert rig.batcher.close(LONG_S)
            assert not rig.batcher.run_now(rig.ticket(1.0))


def test_the_least_time_of_a_size_decides() -> None:
    in_place = InPlace()
    for number in range(TRIALS):
        assert in_place.expected_s(1) is None
        in_place.ran(1, 9.0 - number)
    assert in_place.expected_s(1) == 9.0 - (TRIALS - 1)
    in_place.ran(1, SHORT_S)
    in_place.ran(1, 9.0)
    assert in_place.expected_s(1) == SHORT_S
    assert in_place.expected_s(2) is None
