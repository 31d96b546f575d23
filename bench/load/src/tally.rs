//! What came of the calls.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{json, Value};

use crate::raw::Failure;

const REASONS: usize = 50;

#[derive(Default)]
pub struct Tally {
    /// Microseconds of every call that was answered OK, and of every other.
    answered_us: Vec<u32>,
    refused_us: Vec<u32>,
    codes: BTreeMap<i32, u64>,
    versions: BTreeMap<String, u64>,
    /// Calls that were not answered OK, by the second in which they began.
    failed_at: BTreeMap<u64, u64>,
    /// What was said of them, as `code: text`.
    reasons: BTreeMap<String, u64>,
    pub connections_lost: u64,
    pub mixed_up: u64,
}

impl Tally {
    pub fn answered(&mut self, took: Duration, version: Option<&str>) {
        self.answered_us.push(whole_us(took));
        *self.codes.entry(0).or_default() += 1;
        if let Some(version) = version {
            match self.versions.get_mut(version) {
                Some(count) => *count += 1,
                None => drop(self.versions.insert(version.to_string(), 1)),
            }
        }
    }

    pub fn failed(&mut self, failure: &Failure, at: Duration, took: Duration) {
        self.refused_us.push(whole_us(took));
        *self.failed_at.entry(at.as_secs()).or_default() += 1;
        *self.codes.entry(failure.code).or_default() += 1;
        let said = format!("{}: {}", failure.code, failure.reason);
        let is_known = self.reasons.contains_key(&said) || self.reasons.len() < REASONS;
        let said = if is_known { said } else { "others".to_owned() };
        *self.reasons.entry(said).or_default() += 1;
    }

    pub fn report(mut self, elapsed: Duration) -> Value {
        self.answered_us.sort_unstable();
        self.refused_us.sort_unstable();
        let ok = self.answered_us.len();
        json!({
            "ok": ok,
            "failed": self.refused_us.len(),
            "seconds": elapsed.as_secs_f64(),
            "ok_per_s": ok as f64 / elapsed.as_secs_f64(),
            "p50_us": quantile(&self.answered_us, 0.50),
            "p99_us": quantile(&self.answered_us, 0.99),
            "refused_p99_us": quantile(&self.refused_us, 0.99),
            "codes": self.codes.iter().map(|(code, n)| (code.to_string(), json!(n)))
                .collect::<serde_json::Map<_, _>>(),
            "versions": self.versions,
            "failed_at": self.failed_at.iter().map(|(at, n)| (at.to_string(), json!(n)))
                .collect::<serde_json::Map<_, _>>(),
            "reasons": self.reasons,
            "connections_lost": self.connections_lost,
            "mixed_up": self.mixed_up,
        })
    }
}

fn whole_us(took: Duration) -> u32 {
    took.as_micros().min(u32::MAX as u128) as u32
}

fn quantile(sorted_us: &[u32], q: f64) -> u32 {
    match sorted_us.len() {
        0 => 0,
        n => sorted_us[((n - 1) as f64 * q).round() as usize],
    }
}
