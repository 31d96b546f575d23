//! The queue of one version: by priority, then the earliest deadline first; a batch is closed on
//! size, delay or deadline.
//!
//! Pure: the time is handed in, threads are the caller's.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use crate::run_times::RunTimes;
use crate::share::Share;

// of the run that would be, to gather as many rows as the last one had: those who were answered
// together ask again together, and a run of the first few of them makes all others wait for it
const GATHERING: u32 = 8;

/// A lower number goes first, whatever its deadline.
pub const NORMAL: u8 = 2;
pub const LAST: u8 = 3;

/// Limits of a batch and of its queue.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    pub max_rows: usize,
    pub max_delay: Duration,
    pub max_queued_rows: usize,
    pub is_batched: bool,
}

/// Why a batch was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    Size,
    Delay,
    Deadline,
    Drain,
}

pub const CLOSINGS: [(Closing, &str); 4] = [
    (Closing::Size, "size"),
    (Closing::Delay, "delay"),
    (Closing::Deadline, "deadline"),
    (Closing::Drain, "drain"),
];

/// What waits in the queue.
pub trait Waiting {
    /// Rows that it adds to a run.
    fn rows(&self) -> usize;
    /// What it goes before, and behind.
    fn priority(&self) -> u8 {
        NORMAL
    }
    /// True once nobody waits for the answer any more.
    fn is_cancelled(&self) -> bool;
    /// True when both may be in one run.
    fn joins(&self, other: &Self) -> bool;
}

pub struct Entry<T> {
    pub deadline: Instant,
    pub enqueued: Instant,
    priority: u8,
    order: u64,
    pub waiting: T,
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl<T> Eq for Entry<T> {}
impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Entry<T> {
    /// The heap gives its greatest first: by priority, then the earliest deadline, then the first
    /// that came.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.place(), other.order).cmp(&(self.place(), self.order))
    }
}

impl<T> Entry<T> {
    fn place(&self) -> (u8, Instant) {
        (self.priority, self.deadline)
    }
}

/// Why a call is not taken.
#[derive(Debug, PartialEq)]
pub enum NoRoom {
    /// The queue is full; it drains in that time.
    Full(Duration),
    /// It could not finish within its deadline, but in that time.
    Late(Duration),
    /// No call is taken any more.
    Closing,
}

/// What the batching thread has to do next.
pub enum Step<T> {
    Wait(Option<Duration>),
    Run(Vec<Entry<T>>, Closing),
    End,
}

pub struct Queue<T> {
    policy: Policy,
    heap: BinaryHeap<Entry<T>>,
    next_order: u64,
    queued_rows: usize,
    oldest: Instant,
    busy_until: Instant,
    last_rows: usize,
    /// No call in the queue goes behind this.
    latest: (u8, Instant),
    /// Some call in the queue is of another priority than the normal one.
    is_mixed: bool,
    is_closing: bool,
    share: Share,
    pub run_times: RunTimes,
}

impl<T: Waiting> Queue<T> {
    pub fn new(policy: Policy, now: Instant) -> Self {
        Queue {
            policy,
            heap: BinaryHeap::new(),
            next_order: 0,
            queued_rows: 0,
            oldest: now,
            busy_until: now,
            last_rows: 0,
            latest: (NORMAL, now),
            is_mixed: false,
            is_closing: false,
            share: Share::default(),
            run_times: RunTimes::default(),
        }
    }

    /// Take a call, or say why not: what cannot finish in time is refused at once.
    pub fn put(&mut self, waiting: T, deadline: Instant, now: Instant) -> Result<(), NoRoom> {
        let rows = waiting.rows();
        let priority = waiting.priority();
        let place = (priority, deadline);
        if let Some(why) = self.refusal(rows, place, now) {
            return Err(why);
        }
        if self.heap.is_empty() {
            (self.latest, self.is_mixed) = (place, false);
            self.oldest = now;
        }
        self.latest = self.latest.max(place);
        self.is_mixed |= priority != NORMAL;
        self.queued_rows += rows;
        self.next_order += 1;
        let order = self.next_order;
        self.heap.push(Entry {
            deadline,
            enqueued: now,
            priority,
            order,
            waiting,
        });
        Ok(())
    }

    /// Why a call of so many rows would not be taken now, if it would not be.
    ///
    /// One that finds others before it may wait for a share of its time only: the rest of it is
    /// for what the estimate does not know.
    pub fn refusal(&self, rows: usize, place: (u8, Instant), now: Instant) -> Option<NoRoom> {
        if self.is_closing {
            return Some(NoRoom::Closing);
        }
        if self.queued_rows + rows > self.policy.max_queued_rows && !self.heap.is_empty() {
            return Some(NoRoom::Full(self.run_time(self.queued_rows, now)));
        }
        let (_, deadline) = place;
        let predicted = self.predict(rows, place, now);
        let left = deadline.saturating_duration_since(now);
        // somebody has to show how long a run takes
        let is_first = self.heap.is_empty() && self.busy_until <= now;
        let bearable = if is_first { left } else { self.share.of(left) };
        (deadline < now || predicted > bearable).then_some(NoRoom::Late(predicted))
    }

    /// Learn how many calls of a run were answered within their time.
    pub fn saw(&mut self, in_time: usize, late: usize) {
        self.share.saw(in_time, late);
    }

    /// Learn how long the run took that ended now.
    pub fn ended(&mut self, rows: usize, took: Duration, now: Instant) {
        self.run_times.record(rows, took, now);
        self.busy_until = now;
        self.last_rows = rows;
    }

    /// How long to wait for as many rows as the last run had; None to go on at once.
    ///
    /// Where the policy has a delay of its own, that one holds.
    pub fn gathering(&self, now: Instant) -> Option<Duration> {
        let earliest = self.earliest()?;
        if self.is_closing || self.has_gathered() || !self.policy.max_delay.is_zero() {
            return None;
        }
        let run = self.run_times.predict(self.expected_rows(), now);
        let due = earliest.checked_sub(run)?;
        let until = due.min(self.oldest + run / GATHERING);
        until
            .checked_duration_since(now)
            .filter(|wait| !wait.is_zero())
    }

    /// True with as many rows as the last run had.
    pub fn has_gathered(&self) -> bool {
        self.queued_rows >= self.expected_rows() || self.is_full()
    }

    fn expected_rows(&self) -> usize {
        self.last_rows.min(self.policy.max_rows)
    }

    pub fn close(&mut self) {
        self.is_closing = true;
    }

    /// True when nothing more fits into the next batch.
    pub fn is_full(&self) -> bool {
        self.queued_rows >= self.policy.max_rows || !self.policy.is_batched
    }

    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    /// Say what to do now; what expired or was cancelled goes to `dropped` and never runs.
    pub fn step(&mut self, now: Instant, dropped: &mut Vec<Entry<T>>) -> Step<T> {
        loop {
            let hopeless = now + self.backlog_run(now);
            while self
                .heap
                .peek()
                .is_some_and(|entry| entry.deadline <= now || entry.deadline < hopeless)
            {
                dropped.extend(self.pop());
                self.share.saw(0, 1);
            }
            let closing = match self.closing(now) {
                Ok(closing) => closing,
                Err(wait) => return Step::Wait(wait),
            };
            let batch = self.take(now, dropped);
            if !batch.is_empty() {
                let rows = batch.iter().map(|entry| entry.waiting.rows()).sum();
                self.busy_until = now + self.run_times.predict(rows, now);
                return Step::Run(batch, closing);
            }
            if self.is_closing && self.heap.is_empty() {
                return Step::End;
            }
        }
    }

    /// How long the next run takes while more than a batch waits, else nothing.
    ///
    /// The earliest deadline first, with too much to do, is to run each call when it is already too
    /// late for it: what would be answered after its deadline makes room for what would not.
    fn backlog_run(&self, now: Instant) -> Duration {
        if !self.is_full() || self.heap.len() < 2 {
            return Duration::ZERO;
        }
        let rows = if self.policy.is_batched {
            self.policy.max_rows
        } else {
            1
        };
        self.run_times.predict(rows, now)
    }

    /// The time until rows with that deadline would be answered.
    fn predict(&self, rows: usize, place: (u8, Instant), now: Instant) -> Duration {
        // only what has priority or is due earlier runs before; what runs now has to end first
        let ahead = if place >= self.latest || self.heap.is_empty() {
            self.queued_rows
        } else {
            let earlier = self.heap.iter().filter(|entry| entry.place() <= place);
            earlier.map(|entry| entry.waiting.rows()).sum()
        };
        self.busy_until.saturating_duration_since(now) + self.run_time(ahead + rows, now)
    }

    /// The earliest deadline of all; that of the first, where priority does not decide.
    fn earliest(&self) -> Option<Instant> {
        match self.is_mixed {
            true => self.heap.iter().map(|entry| entry.deadline).min(),
            false => self.heap.peek().map(|entry| entry.deadline),
        }
    }

    fn run_time(&self, rows: usize, now: Instant) -> Duration {
        let max = self.policy.max_rows;
        let rest = self.run_times.predict(rows % max, now);
        match u32::try_from(rows / max).unwrap_or(u32::MAX) {
            0 => rest,
            full => self.run_times.predict(max, now).saturating_mul(full) + rest,
        }
    }

    /// Why the batch closes now, else how long to wait at most.
    fn closing(&self, now: Instant) -> Result<Closing, Option<Duration>> {
        if self.is_closing {
            return Ok(Closing::Drain);
        }
        let Some(earliest) = self.earliest() else {
            return Err(None);
        };
        if self.is_full() {
            return Ok(Closing::Size);
        }
        let late = self.oldest + self.policy.max_delay;
        if late <= now {
            return Ok(Closing::Delay);
        }
        let run = self.run_times.predict(self.queued_rows, now);
        let due = earliest.checked_sub(run).unwrap_or(now);
        if due <= now {
            return Ok(Closing::Deadline);
        }
        Err(Some(late.min(due) - now))
    }

    /// Take what goes first and fits into one run; at least one call of any size.
    fn take(&mut self, now: Instant, dropped: &mut Vec<Entry<T>>) -> Vec<Entry<T>> {
        let mut batch: Vec<Entry<T>> = Vec::with_capacity(self.heap.len().min(64));
        let mut left = Vec::new();
        let mut rows = 0;
        while let Some(entry) = self.heap.pop() {
            let is_expired = entry.deadline <= now; // it waited behind others with priority
            if is_expired || entry.waiting.is_cancelled() {
                self.queued_rows -= entry.waiting.rows();
                if is_expired {
                    self.share.saw(0, 1);
                }
                dropped.push(entry);
                continue;
            }
            let fits = batch.first().is_none_or(|first| {
                self.policy.is_batched
                    && rows + entry.waiting.rows() <= self.policy.max_rows
                    && entry.waiting.joins(&first.waiting)
            });
            if fits {
                rows += entry.waiting.rows();
                self.queued_rows -= entry.waiting.rows();
                batch.push(entry);
            } else {
                left.push(entry);
                if rows >= self.policy.max_rows || !self.policy.is_batched {
                    break;
                }
            }
        }
        self.heap.extend(left);
        self.oldest = self
            .heap
            .iter()
            .map(|entry| entry.enqueued)
            .min()
            .unwrap_or(now);
        batch
    }

    fn pop(&mut self) -> Option<Entry<T>> {
        let entry = self.heap.pop()?;
        self.queued_rows -= entry.waiting.rows();
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    struct Call {
        name: u32,
        rows: usize,
        priority: u8,
        shape: u32,
        is_cancelled: bool,
    }

    impl Waiting for Call {
        fn rows(&self) -> usize {
            self.rows
        }
        fn priority(&self) -> u8 {
            self.priority
        }
        fn is_cancelled(&self) -> bool {
            self.is_cancelled
        }
        fn joins(&self, other: &Self) -> bool {
            self.shape == other.shape
        }
    }

    fn call(name: u32) -> Call {
        Call {
            name,
            rows: 1,
            priority: NORMAL,
            shape: 0,
            is_cancelled: false,
        }
    }

    fn queue(max_rows: usize, max_delay: Duration, now: Instant) -> Queue<Call> {
        let policy = Policy {
            max_rows,
            max_delay,
            max_queued_rows: 100,
            is_batched: true,
        };
        Queue::new(policy, now)
    }

    fn names(step: Step<Call>) -> (Vec<u32>, Closing) {
        match step {
            Step::Run(batch, closing) => (
                batch.iter().map(|each| each.waiting.name).collect(),
                closing,
            ),
            _ => panic!("no batch"),
        }
    }

    #[test]
    fn the_earliest_deadline_goes_first_and_equals_by_arrival() {
        let now = Instant::now();
        let mut queue = queue(2, Duration::ZERO, now);
        for (name, due) in [(1, 30), (2, 10), (3, 30), (4, 20)] {
            queue.put(call(name), now + due * MS, now).unwrap();
        }
        assert_eq!(
            names(queue.step(now, &mut vec![])),
            (vec![2, 4], Closing::Size)
        );
        assert_eq!(
            names(queue.step(now, &mut vec![])),
            (vec![1, 3], Closing::Size)
        );
    }

    fn with(name: u32, priority: u8) -> Call {
        Call {
            priority,
            ..call(name)
        }
    }

    #[test]
    fn priority_goes_before_deadlines() {
        let now = Instant::now();
        let mut queue = queue(3, Duration::ZERO, now);
        for (name, priority, due) in [(1, LAST, 20), (2, NORMAL, 60), (3, NORMAL, 50)] {
            queue
                .put(with(name, priority), now + due * MS, now)
                .unwrap();
        }
        queue.put(with(4, 1), now + 100 * MS, now).unwrap();
        assert_eq!(names(queue.step(now, &mut vec![])).0, [4, 3, 2]);
        assert_eq!(names(queue.step(now, &mut vec![])).0, [1]);
    }

    #[test]
    fn what_expired_behind_others_with_priority_never_runs() {
        let now = Instant::now();
        let mut queue = queue(8, 5 * MS, now);
        queue.put(with(1, LAST), now + 10 * MS, now).unwrap();
        queue.put(with(2, 1), now + 50 * MS, now).unwrap();
        let mut dropped = vec![];
        let (batch, _) = names(queue.step(now + 11 * MS, &mut dropped));
        assert_eq!((batch, dropped[0].waiting.name), (vec![2], 1));
        assert!(queue.is_empty());
    }

    #[test]
    fn a_deadline_behind_others_with_priority_closes_the_batch() {
        let now = Instant::now();
        let mut queue = queue(8, 50 * MS, now);
        queue.put(with(1, LAST), now + 10 * MS, now).unwrap();
        queue.put(with(2, 1), now + 100 * MS, now).unwrap();
        match queue.step(now, &mut vec![]) {
            Step::Wait(Some(wait)) => assert_eq!(wait, 10 * MS),
            _ => panic!("it should wait"),
        }
    }

    #[test]
    fn only_what_goes_before_a_call_is_counted_against_it() {
        let now = Instant::now();
        let mut queue = queue(1, Duration::ZERO, now);
        queue.ended(1, 10 * MS, now);
        for name in 0..5 {
            queue.put(call(name), now + 100 * MS, now).unwrap();
        }
        let due = now + 20 * MS;
        assert!(matches!(
            queue.put(with(9, LAST), due, now),
            Err(NoRoom::Late(_))
        ));
        assert!(queue.put(with(10, 1), now + 200 * MS, now).is_ok());
        assert_eq!(names(queue.step(now, &mut vec![])).0, [10]);
    }

    #[test]
    fn a_batch_waits_for_its_delay_but_not_past_its_deadline() {
        let now = Instant::now();
        let mut queue = queue(8, 5 * MS, now);
        queue.put(call(1), now + 100 * MS, now).unwrap();
        match queue.step(now, &mut vec![]) {
            Step::Wait(Some(wait)) => assert_eq!(wait, 5 * MS),
            _ => panic!("it should wait"),
        }
        assert_eq!(
            names(queue.step(now + 5 * MS, &mut vec![])),
            (vec![1], Closing::Delay)
        );
        let later = now + 20 * MS;
        queue.ended(1, 2 * MS, later);
        queue.put(call(2), later + 3 * MS, later).unwrap();
        match queue.step(later, &mut vec![]) {
            Step::Wait(Some(wait)) => assert_eq!(wait, MS),
            _ => panic!("it should wait"),
        }
        assert_eq!(
            names(queue.step(later + MS, &mut vec![])),
            (vec![2], Closing::Deadline)
        );
    }

    #[test]
    fn what_expired_or_was_cancelled_never_runs() {
        let now = Instant::now();
        let mut queue = queue(8, 5 * MS, now);
        let gone = Call {
            is_cancelled: true,
            ..call(1)
        };
        queue.put(gone, now + 50 * MS, now).unwrap();
        queue.put(call(2), now + MS, now).unwrap();
        queue.put(call(3), now + 50 * MS, now).unwrap();
        let mut dropped = vec![];
        assert_eq!(
            names(queue.step(now + 6 * MS, &mut dropped)),
            (vec![3], Closing::Delay)
        );
        let dropped: Vec<u32> = dropped.iter().map(|each| each.waiting.name).collect();
        assert_eq!(dropped, [2, 1]);
        assert!(queue.is_empty());
    }

    #[test]
    fn with_more_than_a_batch_waiting_what_would_come_too_late_makes_room() {
        let now = Instant::now();
        let mut queue = queue(2, Duration::ZERO, now);
        queue.ended(2, 10 * MS, now);
        for (name, due) in [(1, 12), (2, 40), (3, 45)] {
            queue.put(call(name), now + due * MS, now).unwrap();
        }
        let mut dropped = vec![];
        let (batch, _) = names(queue.step(now + 5 * MS, &mut dropped));
        assert_eq!((batch, dropped[0].waiting.name), (vec![2, 3], 1));
        // alone it runs: somebody has to show how long a run takes
        let later = now + 50 * MS;
        queue.ended(2, 10 * MS, later);
        queue.put(call(4), later + 12 * MS, later).unwrap();
        assert_eq!(names(queue.step(later + 11 * MS, &mut dropped)).0, [4]);
    }

    #[test]
    fn shapes_that_differ_run_apart() {
        let now = Instant::now();
        let mut queue = queue(8, Duration::ZERO, now);
        let wide = Call {
            shape: 1,
            ..call(2)
        };
        queue.put(call(1), now + 10 * MS, now).unwrap();
        queue.put(wide, now + 11 * MS, now).unwrap();
        queue.put(call(3), now + 12 * MS, now).unwrap();
        assert_eq!(names(queue.step(now, &mut vec![])).0, [1, 3]);
        assert_eq!(names(queue.step(now, &mut vec![])).0, [2]);
    }

    #[test]
    fn a_run_waits_a_little_for_as_many_rows_as_the_last_one_had() {
        let now = Instant::now();
        let mut queue = queue(8, Duration::ZERO, now);
        assert_eq!(queue.gathering(now), None);
        queue.put(call(0), now + 100 * MS, now).unwrap();
        assert_eq!(queue.gathering(now), None, "nothing is known yet");
        names(queue.step(now, &mut vec![]));
        queue.ended(4, 16 * MS, now);
        queue.put(call(1), now + 100 * MS, now).unwrap();
        assert_eq!(queue.gathering(now), Some(2 * MS));
        assert_eq!(queue.gathering(now + 2 * MS), None);
        for name in 2..5 {
            queue.put(call(name), now + 100 * MS, now).unwrap();
        }
        assert_eq!(queue.gathering(now), None);
        names(queue.step(now, &mut vec![]));
        queue.ended(4, 16 * MS, now);
        queue.put(call(5), now + 17 * MS, now).unwrap();
        assert_eq!(
            queue.gathering(now),
            Some(MS),
            "no longer than its deadline allows"
        );
    }

    #[test]
    fn what_cannot_finish_in_time_is_refused() {
        let now = Instant::now();
        let mut queue = queue(2, Duration::ZERO, now);
        queue.ended(2, 10 * MS, now);
        for name in 0..4 {
            queue.put(call(name), now + 100 * MS, now).unwrap();
        }
        let late = queue.put(call(9), now + 25 * MS, now);
        assert!(late.is_ok(), "only what is due earlier runs before it");
        let late = queue.put(call(10), now + 9 * MS, now);
        assert_eq!(late, Err(NoRoom::Late(10 * MS)));
    }

    #[test]
    fn a_queue_as_long_as_the_deadline_takes_no_more() {
        let now = Instant::now();
        let mut queue = queue(4, Duration::ZERO, now);
        queue.ended(4, 10 * MS, now);
        let due = now + 50 * MS;
        let admitted = (0..50).take_while(|name| queue.put(call(*name), due, now).is_ok());
        // 10 ms for each 4 rows, within three fifths of the time
        assert_eq!(admitted.count(), 12);
    }

    #[test]
    fn calls_that_come_too_late_shorten_the_queue_and_those_in_time_lengthen_it() {
        let now = Instant::now();
        let admitted = |late: usize, in_time: usize| {
            let mut queue = queue(4, Duration::ZERO, now);
            queue.ended(4, 10 * MS, now);
            (0..late).for_each(|_| queue.saw(0, 4));
            (0..in_time).for_each(|_| queue.saw(4, 0));
            let due = now + 50 * MS;
            (0..50)
                .take_while(|name| queue.put(call(*name), due, now).is_ok())
                .count()
        };
        assert!(admitted(3, 0) < admitted(0, 0));
        assert!(admitted(3, 0) >= 4, "enough for a run is always taken");
        assert_eq!(admitted(3, 2_000), admitted(0, 0));
    }

    #[test]
    fn what_is_refused_for_its_run_time_is_tried_again_after_a_while() {
        let now = Instant::now();
        let mut queue = queue(4, Duration::ZERO, now);
        queue.ended(1, 400 * MS, now);
        let refused = queue.put(call(1), now + 50 * MS, now);
        assert!(matches!(refused, Err(NoRoom::Late(_))));
        let later = now + 30_000 * MS; // nothing ran meanwhile: nobody learned anything
        assert_eq!(queue.put(call(1), later + 50 * MS, later), Ok(()));
    }

    #[test]
    fn a_full_queue_takes_no_more() {
        let now = Instant::now();
        let mut queue = queue(8, MS, now);
        for name in 0..100 {
            queue.put(call(name), now + 100 * MS, now).unwrap();
        }
        assert!(matches!(
            queue.put(call(100), now + 100 * MS, now),
            Err(NoRoom::Full(_))
        ));
    }

    #[test]
    fn closing_answers_what_is_queued_and_ends() {
        let now = Instant::now();
        let mut queue = queue(8, 50 * MS, now);
        queue.put(call(1), now + 100 * MS, now).unwrap();
        queue.close();
        assert_eq!(
            queue.put(call(2), now + 100 * MS, now),
            Err(NoRoom::Closing)
        );
        assert_eq!(
            names(queue.step(now, &mut vec![])),
            (vec![1], Closing::Drain)
        );
        assert!(matches!(queue.step(now, &mut vec![]), Step::End));
    }
}
