//! How long a run takes, by its number of rows: the clock of batching and admission.
//!
//! What is refused never runs, so a mean that is too long would refuse for ever: one slow run
//! counts for little, a size that does not run is thought to be faster as time goes by, and rows
//! never take longer than as many smaller runs would. The same as Python's `run_times.py`.

use std::time::{Duration, Instant};

const GAIN: f64 = 0.3; // of the moving mean; one that kept to the fast runs would admit too much
const MAX_STEP: f64 = 4.0; // times the mean: a run that was held up counts for no more
const LEAST_S: f64 = 1e-4; // and for no less than this: a mean of nothing could not grow
const FRESH_S: f64 = 0.1; // so long a mean stands; then it halves in HALF_LIFE_S
const HALF_LIFE_S: f64 = 0.5;
const LEAST_HALF_LIFE_S: f64 = 2.0; // the fastest run ever seen is forgotten more slowly
const BUCKETS: usize = 32;

#[derive(Clone, Copy, Debug)]
struct Seen {
    mean_s: f64,
    least_s: f64,
    at: Instant,
}

impl Seen {
    fn expected_s(&self, now: Instant) -> f64 {
        let stale_s = now.saturating_duration_since(self.at).as_secs_f64() - FRESH_S;
        if stale_s <= 0.0 {
            return self.mean_s;
        }
        let mean_s = self.mean_s * (-stale_s / HALF_LIFE_S).exp2();
        mean_s.max(self.least_s * (-stale_s / LEAST_HALF_LIFE_S).exp2())
    }

    fn add(&mut self, seconds: f64, now: Instant) {
        let mean_s = self.expected_s(now);
        let bounded_s = seconds.min(MAX_STEP * mean_s.max(LEAST_S));
        self.mean_s = mean_s + GAIN * (bounded_s - mean_s);
        self.least_s = self.least_s.min(seconds);
        self.at = now;
    }
}

/// Moving means of run time in seconds, one for each power of two of rows.
#[derive(Clone, Debug, Default)]
pub struct RunTimes {
    seen: [Option<Seen>; BUCKETS],
    used: usize, // buckets from here on are empty
}

impl RunTimes {
    /// Learn from one run that ended now.
    pub fn record(&mut self, rows: usize, time: Duration, now: Instant) {
        let (bucket, seconds) = (bucket_of(rows), time.as_secs_f64());
        self.used = self.used.max(bucket + 1);
        match &mut self.seen[bucket] {
            Some(seen) => seen.add(seconds, now),
            empty => {
                *empty = Some(Seen {
                    mean_s: seconds,
                    least_s: seconds,
                    at: now,
                })
            }
        }
    }

    /// The time that a run of so many rows should take; zero before the first run.
    ///
    /// A size that never ran takes the time of the next larger one that did, and no size takes
    /// longer than runs of a smaller one would, one after another.
    ///
    /// What ran a moment ago is no guess: the rest is for sizes that were not seen lately.
    pub fn predict(&self, rows: usize, now: Instant) -> Duration {
        if let Some(seen) = self.seen[bucket_of(rows)] {
            if rows > 0 && now.saturating_duration_since(seen.at).as_secs_f64() <= FRESH_S {
                return Duration::try_from_secs_f64(seen.mean_s).unwrap_or_default();
            }
        }
        self.least_of(rows, |seen| seen.expected_s(now))
    }

    /// The same without any forgetting: what was last seen, however long ago.
    pub fn remembered(&self, rows: usize) -> Duration {
        self.least_of(rows, |seen| seen.mean_s)
    }

    fn least_of(&self, rows: usize, expected_s: impl Fn(&Seen) -> f64) -> Duration {
        if rows == 0 || self.used == 0 {
            return Duration::ZERO;
        }
        let bucket = bucket_of(rows);
        let own = self.seen[bucket..].iter().flatten().next();
        let mut found_s = own.map_or(f64::INFINITY, &expected_s);
        for (place, seen) in self.seen[..bucket.min(self.used)].iter().enumerate() {
            if let Some(seen) = seen {
                let times = f64::from(1u32 << (bucket - place));
                found_s = found_s.min(expected_s(seen) * times);
            }
        }
        Duration::try_from_secs_f64(found_s).unwrap_or_default()
    }
}

fn bucket_of(rows: usize) -> usize {
    let bits = usize::BITS - rows.saturating_sub(1).leading_zeros();
    (bits as usize).min(BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_size_that_never_ran_takes_the_next_larger_ones_time() {
        let (mut times, now) = (RunTimes::default(), Instant::now());
        assert_eq!(times.predict(4, now), Duration::ZERO);
        times.record(8, 2 * MS, now);
        assert_eq!(times.predict(3, now), 2 * MS);
        assert_eq!(times.predict(32, now), 8 * MS);
        assert_eq!(times.predict(0, now), Duration::ZERO);
    }

    #[test]
    fn one_slow_run_counts_for_little_and_a_lasting_change_is_followed() {
        let (mut times, now) = (RunTimes::default(), Instant::now());
        for _ in 0..5 {
            times.record(1, MS, now);
        }
        times.record(1, 2_000 * MS, now);
        assert!(times.predict(1, now) < 2 * MS);
        for _ in 0..40 {
            times.record(1, 2_000 * MS, now);
        }
        assert!(times.predict(1, now) > 1_900 * MS);
    }

    #[test]
    fn what_does_not_run_is_thought_to_be_faster_down_to_the_fastest_seen() {
        let (mut times, now) = (RunTimes::default(), Instant::now());
        times.record(1, MS, now);
        for _ in 0..60 {
            times.record(1, 1_000 * MS, now);
        }
        assert!(times.predict(1, now + 100 * MS) > 990 * MS);
        let after = times.predict(1, now + 600 * MS);
        assert!((490 * MS..510 * MS).contains(&after), "{after:?}");
        let after = times.predict(1, now + 8_000 * MS);
        assert!((MS / 20..MS / 10).contains(&after), "{after:?}");
        assert!(times.predict(1, now + 1_000_000 * MS) < MS / 1_000);
        assert!(times.remembered(1) > 990 * MS);
    }

    #[test]
    fn many_rows_take_no_longer_than_as_many_runs_of_few() {
        let (mut times, now) = (RunTimes::default(), Instant::now());
        times.record(64, 5_000 * MS, now);
        assert_eq!(times.predict(64, now), 5_000 * MS, "it is fresh");
        let later = now + 200 * MS;
        times.record(1, MS, later);
        assert_eq!(times.predict(64, later), 64 * MS);
    }
}
