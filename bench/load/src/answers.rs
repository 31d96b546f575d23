//! Every answered call on its own: what a sum over many cannot say of the moments in between.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The file of one run; the wall clock is read once, so that it cannot be set back in between.
pub struct Answers {
    file: BufWriter<File>,
    start: Instant,
    start_us: u64,
    problem: Option<String>,
}

impl Answers {
    pub fn create(path: &str) -> Result<Self, String> {
        let file = File::create(path).map_err(|error| format!("{path}: {error}"))?;
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Ok(Answers {
            file: BufWriter::with_capacity(1 << 20, file),
            start: Instant::now(),
            start_us: since.as_micros() as u64,
            problem: None,
        })
    }

    /// Write one line; a failure is told at the end.
    pub fn note(&mut self, began: Instant, took: Duration, version: Option<&str>) {
        let asked_us = self.start_us + began.duration_since(self.start).as_micros() as u64;
        let answered_us = asked_us + took.as_micros() as u64;
        let version = version.unwrap_or("0");
        if let Err(error) = writeln!(self.file, "{asked_us} {answered_us} {version}") {
            self.problem.get_or_insert(error.to_string());
        }
    }

    pub fn close(mut self) -> Result<(), String> {
        self.file.flush().map_err(|error| error.to_string())?;
        self.problem.map_or(Ok(()), Err)
    }
}
