//! What part of a call's time its predicted wait may take.
//!
//! A queue as long as deadlines allow answers those at its end too late as soon as an estimate was
//! a little wrong, and has run them for nothing. So it is kept shorter, and shorter still when calls
//! come too late nevertheless.

use std::time::Duration;

const MOST: f64 = 0.6; // runs are no fuller for a longer queue
const LEAST: f64 = 0.2; // of what comes too late whatever is done, others shall not suffer

// 0.3 p 0.6 = 0.002 (1 - p): at rest one call in ninety comes too late
const LATE: f64 = 0.3;
const IN_TIME: f64 = 0.002;

/// A share between `LEAST` and `MOST`.
#[derive(Clone, Copy, Debug)]
pub struct Share(f64);

impl Default for Share {
    fn default() -> Self {
        Share(MOST)
    }
}

impl Share {
    pub fn of(self, time: Duration) -> Duration {
        time.mul_f64(self.0)
    }

    /// Learn what became of calls that were taken, all of one run.
    pub fn saw(&mut self, in_time: usize, late: usize) {
        let all = (in_time + late).max(1) as f64;
        let (in_time, late) = (in_time as f64 / all, late as f64 / all);
        let next = self.0 * (1.0 - LATE * late) + IN_TIME * in_time;
        self.0 = next.clamp(LEAST, MOST);
    }
}
