//! What a replica tells Envoy of the load of one version: the same as Python's `domain/load.py`.
//!
//! Calls at a time over calls a second is the time that a call takes here (J. D. C. Little 1961);
//! Envoy divides the calls by its inverse.

use std::time::{Duration, Instant};

use http::header::HeaderValue;

const PERIOD: Duration = Duration::from_millis(500);
// of the mean. Weights answer to what they cause: a short memory would make them swing
const MEMORY: Duration = Duration::from_secs(8);

/// Moving means of a version's calls a second and calls at a time.
#[derive(Clone, Debug, Default)]
pub struct RecentLoad {
    began: Option<Instant>,
    count: u64,
    seconds: f64,
    calls_per_s: f64,
    in_flight: f64,
    report: Option<HeaderValue>,
}

impl RecentLoad {
    /// Note one answered call; the report changes twice a second.
    pub fn add(&mut self, took: Duration, now: Instant) {
        let began = *self.began.get_or_insert(now);
        self.count += 1;
        self.seconds += took.as_secs_f64();
        let period = now.saturating_duration_since(began);
        if period >= PERIOD {
            self.close(period);
            self.began = Some(now);
        }
    }

    /// The report in ORCA's text form; None until a first period is over.
    pub fn report(&self) -> Option<HeaderValue> {
        self.report.clone()
    }

    fn close(&mut self, period: Duration) {
        let share = match self.report {
            Some(_) => 1.0 - (-period.as_secs_f64() / MEMORY.as_secs_f64()).exp(),
            None => 1.0,
        };
        let took_s = period.as_secs_f64();
        self.calls_per_s += share * (self.count as f64 / took_s - self.calls_per_s);
        self.in_flight += share * (self.seconds / took_s - self.in_flight);
        (self.count, self.seconds) = (0, 0.0);
        let text = format!(
            "TEXT application_utilization={:.4e},rps_fractional={:.4e}",
            self.in_flight, self.calls_per_s
        );
        self.report = HeaderValue::from_str(&text).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_calls_a_second_and_calls_at_a_time() {
        let mut load = RecentLoad::default();
        let began = Instant::now();
        for each in 0..=10 {
            assert_eq!(load.report(), None);
            load.add(
                Duration::from_millis(100),
                began + Duration::from_millis(50 * each),
            );
        }
        // 11 calls of 0.1 s within 0.5 s: 22 a second, 2.2 at a time
        assert_eq!(
            load.report().unwrap().to_str().unwrap(),
            "TEXT application_utilization=2.2000e0,rps_fractional=2.2000e1"
        );
    }

    #[test]
    fn a_mean_moves_by_what_a_period_is_of_its_memory() {
        let mut load = RecentLoad::default();
        let began = Instant::now();
        load.add(Duration::from_secs(1), began);
        load.add(Duration::from_secs(1), began + Duration::from_secs(1));
        assert!((load.in_flight - 2.0).abs() < 1e-9);
        load.add(Duration::ZERO, began + Duration::from_secs(9));
        assert!((load.in_flight - 2.0 * (-1.0f64).exp()).abs() < 1e-9);
    }
}
