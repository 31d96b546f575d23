//! What the I/O thread does between two looks at the sockets: small runs, and answers of others.
//!
//! To wake another thread for a call and to be woken by it costs more than a small graph's run.
//! So the rows of what was read together run together once nothing is left to be read, and their
//! replies leave together. The same for runs in threads of their own: were each call of a run
//! handed back by itself, this thread would take the core from the other one for each, and send
//! each reply alone.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;

use crate::version::{locked, Reply, Version};

const TICK: Duration = Duration::from_millis(5);

/// A call that a timer watches.
pub struct Timed(Arc<Turn>);

impl Drop for Timed {
    fn drop(&mut self) {
        self.0.timed.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The versions whose queued rows run at the end of this turn, and what other threads ran.
#[derive(Default)]
pub struct Turn {
    versions: Mutex<Vec<Arc<Version>>>,
    replies: Mutex<Vec<Reply>>,
    has_replies: Notify,
    timed: AtomicUsize,
    has_timed: Notify,
}

impl Turn {
    /// Hand over what came of a run; whoever calls is in another thread.
    pub fn deliver(&self, replies: &mut Vec<Reply>) {
        if replies.is_empty() {
            return;
        }
        locked(&self.replies).append(replies);
        self.has_replies.notify_one();
    }

    /// Answer the calls that other threads ran, whenever there are some.
    pub async fn answer(&self) {
        loop {
            self.has_replies.notified().await;
            let replies = std::mem::take(&mut *locked(&self.replies));
            replies.into_iter().for_each(Reply::send);
        }
    }

    /// Count a call in that a timer watches, until what is returned is dropped.
    pub fn timed(self: &Arc<Self>) -> Timed {
        if self.timed.fetch_add(1, Ordering::Relaxed) == 0 {
            self.has_timed.notify_one();
        }
        Timed(self.clone())
    }

    /// Tick while timers watch calls. A timer that is due before all others costs a call of the
    /// system's own, which wakes the thread that sets it: no call's is, where a tick is before it.
    pub async fn tick(&self) {
        loop {
            self.has_timed.notified().await;
            while self.timed.load(Ordering::Relaxed) > 0 {
                tokio::time::sleep(TICK).await;
            }
        }
    }

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
