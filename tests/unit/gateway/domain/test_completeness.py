from __future__ import annotations

from volary_gateway.domain.completeness import AGREEING, PATIENCE, SETTLE_US, Account, Poll, Verdict

MS = 1_000


def account(known_lost: int | None = 0, ended: tuple[int, ...] = ()) -> Account:
    made = Account(known_lost=known_lost)
    for at in ended:
        made.note(at)
    return made


def judged(made: Account, began: int, ended: int, attempts: int, times: int = 1) -> Verdict:
    """The verdict of the last of some polls that read the same."""
    verdict = Verdict()
    for _ in range(times):
        made.poll(Poll(began, ended, attempts))
        verdict = made.judge(ended + SETTLE_US)
    return verdict


def test_every_attempt_has_its_record():
    verdict = judged(account(ended=(10 * MS, 20 * MS)), 100 * MS, 101 * MS, 2)
    assert (verdict.lost, verdict.is_clear) == (0, True)


def test_missing_record_is_found_once():
    made = account(ended=(10 * MS,))
    assert judged(made, 100 * MS, 101 * MS, 3, times=AGREEING - 1).lost == 0
    assert judged(made, 100 * MS, 101 * MS, 3).lost == 2
    again = judged(made, 200 * MS, 201 * MS, 3)
    assert (again.lost, again.is_clear) == (0, True)


def test_attempt_that_ends_during_the_poll_is_neither_lost_nor_cleared():
    made = account(ended=(10 * MS, 100 * MS))
    verdict = judged(made, 100 * MS, 101 * MS, 1)
    assert (verdict.lost, verdict.is_clear) == (0, False) or verdict.is_clear
    counted = judged(account(ended=(10 * MS, 100 * MS)), 100 * MS, 101 * MS, 2)
    assert (counted.lost, counted.is_clear) == (0, False)


def test_loss_is_found_under_load():
    ended = tuple(at * 10 * MS for at in range(1, 100) if at != 50)
    verdict = judged(account(ended=ended), 904 * MS, 905 * MS, 90, times=AGREEING)
    assert (verdict.lost, verdict.is_clear) == (1, True)


def test_records_that_are_still_on_their_way_are_not_called_lost():
    made = account(ended=(10 * MS,))
    made.poll(Poll(100 * MS, 101 * MS, 2))
    assert made.judge(101 * MS + SETTLE_US - 1).lost == 0
    made.note(90 * MS)
    assert made.judge(101 * MS + SETTLE_US).is_clear


def test_record_that_came_too_late_is_found_again():
    made = account(ended=(10 * MS,))
    assert judged(made, 100 * MS, 101 * MS, 3, times=AGREEING).lost == 2
    made.note(90 * MS)
    verdict = judged(made, 200 * MS, 201 * MS, 3, times=AGREEING)
    assert (verdict.lost, verdict.is_clear, made.known_lost) == (-1, True, 1)


def test_first_exact_poll_is_where_counting_begins():
    made = account(known_lost=None, ended=(10 * MS,))
    assert not judged(made, 100 * MS, 101 * MS, 500).is_clear
    assert made.known_lost == 499
    assert judged(made, 200 * MS, 201 * MS, 501, times=AGREEING).lost == 1


def test_cluster_that_is_met_before_its_first_attempt_is_counted_from_the_start():
    made = account(known_lost=None)
    made.poll(Poll(100 * MS, 101 * MS, 0))
    assert made.known_lost == 0


def test_counter_that_begins_anew_is_noticed():
    made = account(ended=(10 * MS, 20 * MS, 30 * MS))
    assert judged(made, 50 * MS, 51 * MS, 3).is_clear
    verdict = judged(made, 100 * MS, 101 * MS, 1, times=AGREEING)
    assert verdict.is_restarted
    assert not verdict.is_clear
    assert made.known_lost is None


def test_one_poll_that_read_attempts_in_mid_air_is_not_a_loss_and_not_a_restart():
    made = account(ended=(10 * MS, 20 * MS))
    verdict = Verdict()
    for attempts in (2, 4, 2, 1, 2):
        verdict = judged(made, 100 * MS, 101 * MS, attempts)
        assert (verdict.lost, verdict.is_restarted) == (0, False)
    assert verdict.is_clear
    assert made.known_lost == 0


def test_a_counter_that_began_anew_is_doubted_once_and_counted_from_there():
    made = account(ended=tuple(at * MS for at in range(1, 40)))
    assert judged(made, 50 * MS, 51 * MS, 39).is_clear
    assert judged(made, 100 * MS, 101 * MS, 1, times=AGREEING).is_restarted
    for second in range(1, 10):
        now = second * 1_000 * MS
        made.note(now)
        verdict = judged(made, now + 500 * MS, now + 501 * MS, 1 + second)
        assert not verdict.is_restarted
    assert verdict.is_clear
    lost = judged(made, 10_000 * MS, 10_001 * MS, 11, times=AGREEING)
    assert lost.lost == 1


def test_counting_begins_under_load_where_no_poll_is_exact():
    made = account(known_lost=None)
    for poll in range(PATIENCE):
        began = poll * 100 * MS
        # an attempt ends in the midst of each: every other one has read the counter after it
        made.note(began + MS)
        is_late = poll % 2
        judged(made, began, began + 2 * MS, 7 + poll + is_late)
        if made.known_lost is not None:
            break
    assert made.known_lost == 7


def test_without_an_exact_poll_the_least_that_may_be_lost_is_believed():
    made = account(known_lost=None)
    for poll in range(PATIENCE):
        assert made.known_lost is None
        made.note(poll * 100 * MS + MS)
        judged(made, poll * 100 * MS, poll * 100 * MS + 2 * MS, 7 + poll)
    assert made.known_lost == 6


def test_counter_of_a_new_process_is_held_against_new_records_only():
    made = account(ended=tuple(at * MS for at in range(1, 50)))
    made.forget()
    made.note(90 * MS)
    verdicts = [judged(made, at * MS, (at + 1) * MS, 1) for at in range(100, 110)]
    assert not any(verdict.is_restarted or verdict.lost for verdict in verdicts)
    assert verdicts[-1].is_clear


def test_account_knows_a_record_that_is_younger_than_a_reading():
    made = account(ended=(10 * MS, 90 * MS))
    assert made.has_since(80 * MS)
    assert not made.has_since(100 * MS)
