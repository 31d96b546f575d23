from __future__ import annotations

import pytest
from volary_cli.launcher.scaling import Scaler, ScalingPolicy

POLICY = ScalingPolicy(1, 3, high_us=10_000, low_us=1_000, rise_s=2, fall_s=10)


def numbers(looks: list[tuple[float, list[int]]], running: int = 1) -> list[int]:
    """Return the number of replicas after each look; a new one is there by the next."""
    scaler, found = Scaler(POLICY), []
    for now_s, queue_us in looks:
        running = scaler.decide(now_s, queue_us, running)
        found.append(running)
    return found


def test_replica_joins_after_a_while_of_waiting_and_not_before():
    assert numbers([(0, [20_000]), (1, [20_000]), (2, [20_000])]) == [1, 1, 2]


def test_short_wait_in_between_begins_the_while_anew():
    assert numbers([(0, [20_000]), (1, [5_000]), (2, [20_000]), (3, [20_000])]) == [1, 1, 1, 1]


def test_replica_leaves_later_than_it_came():
    idle = [(float(t), [0, 0]) for t in range(11)]
    assert numbers(idle, running=2) == [2] * 10 + [1]


def test_nothing_is_decided_until_a_new_replica_takes_calls():
    assert numbers([(float(t), [20_000]) for t in range(9)], running=2) == [2] * 9


def test_number_stays_between_minimum_and_maximum():
    busy = [(float(t), [20_000] * 3) for t in range(9)]
    assert numbers(busy, running=3) == [3] * 9
    idle = [(float(t), [0]) for t in range(30)]
    assert numbers(idle, running=1) == [1] * 30
    assert numbers([(0, [])], running=5) == [4]
    assert numbers([(0, [])], running=0) == [1]


@pytest.mark.parametrize("broken", [(0, 1), (2, 1), (1, 2, 5, 5), (1, 2, 5, 9)])
def test_policy_that_makes_no_sense_is_refused(broken: tuple[int, ...]):
    with pytest.raises(ValueError, match="scaling wants"):
        ScalingPolicy(*broken)
