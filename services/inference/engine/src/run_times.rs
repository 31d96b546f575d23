//! How long a run takes, by its number of rows: the clock of batching and admission.

use std::time::Duration;

const GAIN: f64 = 0.2; // of the moving mean: half of a lasting change is seen after 3 runs
const BUCKETS: usize = 32;

/// Moving means of run time in seconds, one for each power of two of rows.
#[derive(Clone, Debug, Default)]
pub struct RunTimes {
    means: [Option<f64>; BUCKETS],
}

impl RunTimes {
    /// Learn from one run.
    pub fn record(&mut self, rows: usize, time: Duration) {
        let seconds = time.as_secs_f64();
        let mean = &mut self.means[bucket_of(rows)];
        *mean = Some(mean.map_or(seconds, |mean| mean + GAIN * (seconds - mean)));
    }

    /// The time that a run of so many rows should take; zero before the first run.
    ///
    /// A size that never ran takes the time of the next larger one that did; past the largest
    /// the time grows with the rows.
    pub fn predict(&self, rows: usize) -> Duration {
        if rows == 0 {
            return Duration::ZERO;
        }
        let bucket = bucket_of(rows);
        if let Some(mean) = self.means[bucket..].iter().flatten().next() {
            return Duration::from_secs_f64(*mean);
        }
        let largest = self.means.iter().rposition(Option::is_some);
        largest.map_or(Duration::ZERO, |largest| {
            let times = f64::from(1u32 << (bucket - largest));
            Duration::from_secs_f64(self.means[largest].unwrap_or(0.0) * times)
        })
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
        let mut times = RunTimes::default();
        assert_eq!(times.predict(4), Duration::ZERO);
        times.record(8, 2 * MS);
        assert_eq!(times.predict(3), 2 * MS);
        assert_eq!(times.predict(32), 8 * MS);
        assert_eq!(times.predict(0), Duration::ZERO);
    }

    #[test]
    fn the_mean_follows_a_lasting_change() {
        let mut times = RunTimes::default();
        times.record(1, MS);
        for _ in 0..20 {
            times.record(1, 3 * MS);
        }
        assert!(times.predict(1) > Duration::from_micros(2_900));
    }
}
