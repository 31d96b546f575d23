//! Runs of small graphs between two looks at the sockets, on the I/O thread itself.
//!
//! To wake another thread for a call and to be woken by it costs more than a small graph's run.
//! So the rows of what was read together run together once nothing is left to be read, and their
//! replies leave together.

use std::sync::{Arc, Mutex};

use crate::version::{locked, Version};

/// The versions whose queued rows run at the end of this turn of the I/O thread.
#[derive(Default)]
pub struct Turn {
    versions: Mutex<Vec<Arc<Version>>>,
}

impl Turn {
    /// Let a version run what it has queued; once, however often it is said.
    pub fn add(&self, version: &Arc<Version>) {
        let mut versions = locked(&self.versions);
        if !versions.iter().any(|each| Arc::ptr_eq(each, version)) {
            versions.push(version.clone());
        }
    }

    /// Run all that is queued; called when the I/O thread has nothing else to do.
    pub fn end(&self) {
        let versions = std::mem::take(&mut *locked(&self.versions));
        for version in &versions {
            version.run_queued();
        }
        // its memory serves the next turn
        let mut held = locked(&self.versions);
        if held.is_empty() {
            *held = versions;
            held.clear();
        }
    }
}
