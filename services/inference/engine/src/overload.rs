//! Refusals for want of room, made once and sent as often as it takes.
//!
//! Under overload most of what the I/O thread does is to refuse, and each microsecond of it is
//! taken from the runs: what a refusal says is encoded once for each delay that it advises, and
//! delays are rounded up to a power of two of milliseconds.

use std::sync::LazyLock;
use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use http::Response;

use crate::contract::{Code, Refusal};
use crate::infer;
use crate::wire::{refused, Body};

const LONGEST: u32 = 16; // 2^16 ms: a minute

/// A refusal as it is sent, for each delay.
pub struct Overload {
    of_delay: LazyLock<Vec<Response<()>>>,
}

pub static FULL: Overload = Overload {
    of_delay: LazyLock::new(|| made(infer::FULL)),
};
pub static LATE: Overload = Overload {
    of_delay: LazyLock::new(|| made(infer::TOO_LATE)),
};

fn made(text: &str) -> Vec<Response<()>> {
    let of = |power: u32| {
        let delay = Duration::from_millis(1 << power);
        let refusal = Refusal::new(Code::ResourceExhausted, "OVERLOADED", text).retry_after(delay);
        refused(&refusal, &[]).map(drop)
    };
    (0..=LONGEST).map(of).collect()
}

impl Overload {
    /// The response that asks to come back after a delay, or a little later.
    pub fn response(
        &self,
        retry_after: Duration,
        marks: &[(HeaderName, HeaderValue)],
    ) -> Response<Body> {
        let ms = u64::try_from(retry_after.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX);
        let power = ms.clamp(1, 1 << LONGEST).next_power_of_two().ilog2();
        let mut response = self.of_delay[power as usize]
            .clone()
            .map(|()| Body::default());
        response.headers_mut().extend(marks.iter().cloned());
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_is_no_shorter_than_what_was_asked_for() {
        for (asked_us, told_ms) in [
            (0, 1),
            (1_000, 1),
            (1_001, 2),
            (9_000, 16),
            (u64::MAX, 65_536),
        ] {
            let response = LATE.response(Duration::from_micros(asked_us), &[]);
            let told = &response.headers()["grpc-retry-pushback-ms"];
            assert_eq!(told, told_ms.to_string().as_str());
        }
    }
}
