//! What a call leaves behind: a prediction event and spans, in bounded rings.
//!
//! The I/O thread only moves what it has into a ring; it is encoded when it is fetched.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;

use crate::contract::volary::otlp::v1 as otlp;
use crate::decisions::Band;
use crate::events::write_event;
use crate::spans::request_of;
use crate::tensors::Datatype;
use crate::version::locked;

// so long an event waits for others: a thread that wakes for each of them costs as much as the call
const GATHER: Duration = Duration::from_millis(20);
const STREAM: &str = "volary:predictions";

/// A version as replies and events name it.
#[derive(Debug)]
pub struct Identity {
    pub project: String,
    pub model: String,
    pub version: i64,
    pub digest: String,
}

/// How a call came: what reply and event tell of it.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    pub request_key: String,
    pub attempt: u32,
    pub route: String,
    pub is_shadow: bool,
    pub trace: Trace,
}

impl Origin {
    pub fn prediction_id(&self, version: i64) -> String {
        format!("{}.{version}.{}", self.request_key, self.attempt)
    }

    /// Append the prediction id.
    pub fn write_prediction_id(&self, out: &mut Vec<u8>, version: i64) {
        let _ = write!(out, "{}.{version}.{}", self.request_key, self.attempt);
    }
}

/// The span of a call within its trace (W3C Trace Context).
#[derive(Clone, Debug, Default)]
pub struct Trace {
    pub id: u128,
    pub span: u64,
    pub parent: u64,
    pub state: String,
    pub is_sampled: bool,
}

impl Trace {
    /// The span that is a child of the header's, else the root of a trace of its own.
    pub fn of(traceparent: Option<&str>, state: &str, is_exported: bool) -> Trace {
        let span = fastrand::u64(1..);
        let Some((id, parent, flags)) = traceparent.and_then(parsed) else {
            let id = fastrand::u128(1..);
            return Trace {
                id,
                span,
                is_sampled: is_exported,
                ..Trace::default()
            };
        };
        Trace {
            id,
            span,
            parent,
            state: state.to_owned(),
            is_sampled: is_exported && flags & 1 == 1,
        }
    }

    pub fn id_text(&self) -> String {
        format!("{:032x}", self.id)
    }

    pub fn traceparent(&self) -> String {
        let flags = u8::from(self.is_sampled);
        format!("00-{:032x}-{:016x}-{flags:02x}", self.id, self.span)
    }
}

fn parsed(header: &str) -> Option<(u128, u64, u8)> {
    let mut parts = header.trim().split('-');
    let (version, id) = (parts.next()?, parts.next()?);
    let (parent, flags) = (parts.next()?, parts.next()?);
    let is_hex = |text: &str, length| {
        text.len() == length
            && text
                .bytes()
                .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    let fits = is_hex(version, 2) && is_hex(id, 32) && is_hex(parent, 16) && is_hex(flags, 2);
    if !fits || version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let id = u128::from_str_radix(id, 16).ok()?;
    let parent = u64::from_str_radix(parent, 16).ok()?;
    let flags = u8::from_str_radix(flags, 16).ok()?;
    (id != 0 && parent != 0).then_some((id, parent, flags))
}

/// One answered call, as the prediction log will have it.
#[derive(Debug)]
pub struct Prediction {
    pub about: Arc<Identity>,
    pub origin: Origin,
    pub tier: &'static str,
    pub subject: String,
    pub event_time_us: i64,
    pub replied_at_us: i64,
    pub features: Option<(Datatype, Bytes)>,
    pub outputs: Vec<(Datatype, Bytes)>,
    pub confidence: Option<f64>,
    pub latency: Duration,
    pub queued: Duration,
    pub batch_size: usize,
    pub code: i32,
    pub decided: Option<Arc<Band>>,
}

/// A span that ended.
#[derive(Debug)]
pub struct Span {
    pub trace: Trace,
    pub name: &'static str,
    pub kind: otlp::SpanKind,
    pub began_ns: u64,
    pub ended_ns: u64,
    pub code: &'static str,
    pub error: Option<&'static str>,
    pub attributes: Vec<(&'static str, Value)>,
}

#[derive(Debug)]
pub enum Value {
    Text(String),
    Word(&'static str),
    Number(i64),
    Flag(bool),
}

/// At most `capacity` entries; when it is full the new one is dropped and counted.
pub struct Ring<T> {
    capacity: usize,
    held: Mutex<Held<T>>,
    changed: Condvar,
}

struct Held<T> {
    entries: VecDeque<T>,
    dropped: u64,
    /// So many make whoever waits for entries look; to wake it for each costs more than the call.
    wanted: usize,
}

impl<T> Ring<T> {
    pub fn new(capacity: usize) -> Self {
        Ring {
            capacity,
            held: Mutex::new(Held {
                entries: VecDeque::new(),
                dropped: 0,
                wanted: 1,
            }),
            changed: Condvar::new(),
        }
    }

    pub fn is_wanted(&self) -> bool {
        self.capacity > 0
    }

    /// Add an entry without ever waiting; what is dropped is not even made.
    pub fn offer(&self, entry: impl FnOnce() -> T) {
        let mut held = locked(&self.held);
        if held.entries.len() >= self.capacity {
            held.dropped += 1;
            return;
        }
        held.entries.push_back(entry());
        if held.entries.len() == held.wanted {
            self.changed.notify_one();
        }
    }

    /// Remove the oldest entries: wait for the first one, then a moment for more to come.
    pub fn take(&self, limit: usize, wait: Duration, gather: Duration) -> Vec<T> {
        let held = self.waited(locked(&self.held), 1, wait);
        let mut held = match held.entries.len() {
            0 => held,
            count if count >= limit => held,
            _ => self.waited(held, limit, gather),
        };
        held.wanted = 1;
        let count = limit.min(held.entries.len());
        held.entries.drain(..count).collect()
    }

    fn waited<'a>(
        &self,
        mut held: MutexGuard<'a, Held<T>>,
        wanted: usize,
        wait: Duration,
    ) -> MutexGuard<'a, Held<T>> {
        held.wanted = wanted;
        let is_short = |held: &mut Held<T>| held.entries.len() < wanted;
        let waited = self.changed.wait_timeout_while(held, wait, is_short);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// How many wait to be taken.
    pub fn waiting(&self) -> usize {
        locked(&self.held).entries.len()
    }

    /// Return how many were dropped since the last time.
    pub fn take_dropped(&self) -> u64 {
        std::mem::take(&mut locked(&self.held).dropped)
    }
}

/// Where the I/O thread leaves its records.
pub struct Records {
    pub predictions: Ring<Prediction>,
    pub spans: Ring<Span>,
    resource: Option<Vec<u8>>,
}

impl Records {
    /// `resource` is the serialized `Resource` of the spans; without it none are kept.
    pub fn new(events: usize, spans: usize, resource: Option<&[u8]>) -> Result<Self, String> {
        if let Some(resource) = resource {
            otlp::Resource::decode(resource)
                .map_err(|error| format!("the resource is none: {error}"))?;
        }
        let spans = if resource.is_some() { spans } else { 0 };
        Ok(Records {
            predictions: Ring::new(events),
            spans: Ring::new(spans),
            resource: resource.map(<[u8]>::to_vec),
        })
    }

    pub fn is_traced(&self) -> bool {
        self.resource.is_some()
    }

    /// Take events as `volary.events.v1.Event`, with a producer span for each traced one.
    ///
    /// They come as the bulk strings of Redis's protocol, one after another: how many, and the
    /// bytes that only have to be sent.
    pub fn take_events(&self, limit: usize, wait: Duration) -> (usize, Vec<u8>) {
        let taken = self.predictions.take(limit, wait, GATHER);
        let (mut bulk, mut event) = (Vec::with_capacity(taken.len() * 1_024), Vec::new());
        for prediction in &taken {
            let began_ns = now_ns();
            event.clear();
            write_event(&mut event, prediction);
            if prediction.origin.trace.is_sampled {
                self.spans.offer(|| published(prediction, began_ns));
            }
            let _ = write!(bulk, "${}\r\n", event.len());
            bulk.extend_from_slice(&event);
            bulk.extend_from_slice(b"\r\n");
        }
        (taken.len(), bulk)
    }

    /// Take spans as one `ExportTraceServiceRequest`.
    pub fn take_spans(&self, limit: usize, wait: Duration) -> (usize, Vec<u8>) {
        let taken = self.spans.take(limit, wait, Duration::ZERO);
        let resource = self.resource.as_deref().unwrap_or_default();
        (taken.len(), request_of(&taken, resource))
    }
}

fn published(prediction: &Prediction, began_ns: u64) -> Span {
    let own = &prediction.origin.trace;
    Span {
        trace: Trace {
            span: fastrand::u64(1..),
            parent: own.span,
            ..own.clone()
        },
        name: "publish volary:predictions",
        kind: otlp::SpanKind::Producer,
        began_ns,
        ended_ns: now_ns(),
        code: "OK",
        error: None,
        attributes: vec![
            ("messaging.system", Value::Word("redis")),
            ("messaging.destination.name", Value::Word(STREAM)),
        ],
    }
}

pub fn now_ns() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| since.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_the_child_of_its_header() {
        let header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let trace = Trace::of(Some(header), "a=b", true);
        assert_eq!(trace.id_text(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(trace.parent, 0xb7ad_6b71_6920_3331);
        assert!(trace.is_sampled);
        assert!(
            !Trace::of(Some(header), "", false).is_sampled,
            "nobody would take the spans"
        );
        let back = parsed(&trace.traceparent()).unwrap();
        assert_eq!(back, (trace.id, trace.span, 1));
    }

    #[test]
    fn a_malformed_header_begins_a_trace() {
        for header in [
            "",
            "00-0-0-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        ] {
            assert!(parsed(header).is_none(), "{header}");
            assert_eq!(Trace::of(Some(header), "", true).parent, 0);
        }
    }

    #[test]
    fn whoever_waits_for_many_is_woken_when_they_are_there() {
        let ring = Arc::new(Ring::new(10));
        let taking = ring.clone();
        let long = Duration::from_secs(60);
        let taker = std::thread::spawn(move || taking.take(3, long, long));
        for number in 0..3 {
            ring.offer(|| number);
        }
        assert_eq!(taker.join().unwrap(), [0, 1, 2]);
    }

    #[test]
    fn a_full_ring_drops_and_counts() {
        let ring = Ring::new(2);
        for number in 0..5 {
            ring.offer(|| number);
        }
        assert_eq!(ring.take(9, Duration::ZERO, Duration::ZERO), [0, 1]);
        assert_eq!((ring.take_dropped(), ring.take_dropped()), (3, 0));
        assert_eq!(
            ring.take(9, Duration::from_millis(1), Duration::ZERO),
            [0; 0]
        );
    }
}
