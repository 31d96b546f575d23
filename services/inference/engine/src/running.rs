//! A call in flight: how it came, how it ends, and what it leaves behind.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::Response;
use prost::Message;

use crate::contract::volary::otlp::v1::SpanKind;
use crate::contract::{Code, Refusal};
use crate::credentials::Principal;
use crate::infer::{Answered, Asked};
use crate::overload::Overload;
use crate::plane::{Loaded, Method, Plane};
use crate::records::{now_ns, Origin, Prediction, Span, Trace, Value};
use crate::version::Part;
use crate::wire::{
    framed, refused, replied, timeout_header, timeout_of, Body, TIER, TIMEOUT, VERSION,
};

const RETRY_AFTER: Duration = Duration::from_millis(100);
const MAX_KEY: usize = 128;

/// A call in flight; one that is dropped before its end was cancelled.
pub struct Running {
    pub plane: Arc<Plane>,
    pub method: Method,
    pub began: Instant,
    began_ns: u64,
    in_flight: usize,
    pub origin: Origin,
    /// What it wants of a version, once that is known.
    pub asked: Option<Asked>,
    pub is_cancelled: Arc<AtomicBool>,
    is_over: bool,
    /// A message of a stream: the stream is the call that counts.
    is_part: bool,
}

impl Running {
    pub fn begin(plane: Arc<Plane>, method: Method, headers: &HeaderMap) -> Self {
        let in_flight = plane.enter();
        let is_traced = plane.records.is_traced();
        Running {
            origin: origin_of(headers, is_traced),
            plane,
            method,
            began: Instant::now(),
            began_ns: if is_traced { now_ns() } else { 0 },
            in_flight,
            asked: None,
            is_cancelled: Arc::default(),
            is_over: false,
            is_part: false,
        }
    }

    /// A message of a stream, which leaves an event and a span of its own.
    pub fn part_of(plane: Arc<Plane>, origin: Origin, mut asked: Asked) -> Self {
        asked.began_ns = if origin.trace.is_sampled { now_ns() } else { 0 };
        Running {
            began_ns: asked.began_ns,
            origin,
            plane,
            method: Method::ModelStreamInfer,
            began: Instant::now(),
            in_flight: 0,
            asked: Some(asked),
            is_cancelled: Arc::default(),
            is_over: false,
            is_part: true,
        }
    }

    /// The instant as its spans tell it.
    pub fn now_ns(&self) -> u64 {
        self.began_ns + self.began.elapsed().as_nanos() as u64
    }

    /// Its caller, when the credential is valid and the role allowed.
    pub fn principal(&self, headers: &HeaderMap) -> Option<Arc<Principal>> {
        self.plane.principal_of(self.method, headers, self.began)
    }

    /// What was asked, to be answered here or elsewhere: nothing is left behind of it yet.
    pub fn take_asked(&mut self) -> Asked {
        self.is_over = true;
        self.asked.take().expect("a part has what it asks")
    }

    pub fn answered(mut self, asked: Asked, answered: Answered) {
        self.asked = Some(asked);
        self.end(Code::Ok, None, Some(answered));
    }

    pub fn ended(mut self, code: Code, reason: Option<&'static str>) {
        self.end(code, reason, None);
    }

    pub fn full(&self) -> Option<Refusal> {
        let limit = self.plane.max_calls;
        (self.in_flight > limit).then(|| {
            let text = format!("{limit} calls are in flight, which is the limit");
            Refusal::new(Code::ResourceExhausted, "TOO_MANY_CALLS", text)
                .with("limit", limit)
                .retry_after(RETRY_AFTER)
        })
    }

    /// The deadline that holds; None when the caller's is malformed.
    pub fn deadline(&self, headers: &HeaderMap) -> Option<Instant> {
        let row = self.plane.row(self.method);
        let asked = timeout_of(headers).ok()?;
        let limit = asked.map_or(row.default_deadline, |asked| asked.min(row.max_deadline));
        Some(self.began + limit)
    }

    /// Let Python answer; in memory of its own, which calls that are answered here do not need.
    pub fn hand_over(
        self,
        parts: Parts,
        body: Body,
    ) -> Pin<Box<dyn Future<Output = Response<Body>> + Send>> {
        Box::pin(self.handed_over(parts, body))
    }

    async fn handed_over(mut self, mut parts: Parts, body: Body) -> Response<Body> {
        self.leave();
        // its time began here
        if let Ok(Some(asked)) = timeout_of(&parts.headers) {
            let left = timeout_header(self.began + asked, Instant::now());
            parts.headers.insert(TIMEOUT, left);
        }
        self.plane.upstream.answer(parts, body).await
    }

    /// Refuse at the door: counted, and nothing else is left of it.
    pub fn turn_away(
        mut self,
        why: &'static Overload,
        retry: Duration,
        loaded: &Loaded,
    ) -> Response<Body> {
        let took = self.began.elapsed();
        self.leave();
        self.plane.count(self.method, Code::ResourceExhausted, took);
        loaded.version.statistics().failure.add(took);
        why.response(retry, &marks_of(loaded, "none"))
    }

    pub fn reply(
        mut self,
        message: &impl Message,
        marks: &[(HeaderName, HeaderValue)],
    ) -> Response<Body> {
        let response = replied(framed(message), marks);
        self.end(Code::Ok, None, None);
        response
    }

    pub fn refuse(mut self, refusal: &Refusal, loaded: Option<&Loaded>) -> Response<Body> {
        let marks = loaded.map(|loaded| marks_of(loaded, "none"));
        let response = refused(refusal, marks.as_ref().map_or(&[], |marks| &marks[..]));
        self.end(refusal.code, Some(refusal.reason), None);
        response
    }

    pub fn cancelled(mut self) -> Response<Body> {
        self.end(Code::Cancelled, Some("CANCELLED"), None);
        let refusal = Refusal::new(Code::Cancelled, "CANCELLED", "the caller went away");
        refused(&refusal, &[])
    }

    fn leave(&mut self) {
        self.is_over = true;
        if !self.is_part {
            self.plane.leave();
        }
    }

    /// Count the call, and leave its event and spans.
    pub fn end(&mut self, code: Code, reason: Option<&'static str>, answered: Option<Answered>) {
        let took = self.began.elapsed();
        self.leave();
        if !self.is_part {
            self.plane.count(self.method, code, took);
        }
        if self.origin.trace.is_sampled {
            self.leave_spans(code, reason, took, answered.as_ref());
        }
        if let Some(asked) = self.asked.take() {
            note(&asked, took, answered.as_ref());
            self.leave_event(asked, code, took, answered);
        }
    }

    fn leave_event(
        &mut self,
        asked: Asked,
        code: Code,
        took: Duration,
        answered: Option<Answered>,
    ) {
        let predictions = &self.plane.records.predictions;
        if !predictions.is_wanted() {
            return;
        }
        let origin = std::mem::take(&mut self.origin);
        predictions.offer(|| {
            let now_us = (now_ns() / 1_000) as i64;
            let answered = answered.as_ref();
            let part = answered.map(|answered| &answered.part);
            let outputs = |part: &Part| -> Vec<_> {
                let specs = &asked.loaded.version.outputs;
                let of =
                    |index: &usize| (specs[*index].datatype, part.outputs[*index].data.clone());
                asked.outputs.iter().map(of).collect()
            };
            Prediction {
                about: asked.loaded.about.clone(),
                decided: answered.and_then(|answered| answered.decided.clone()),
                origin,
                tier: if part.is_some() { "model" } else { "none" },
                subject: asked.subject,
                event_time_us: asked.event_time_us.unwrap_or(now_us),
                replied_at_us: now_us,
                outputs: part.map_or_else(Vec::new, outputs),
                features: asked.features,
                confidence: answered.and_then(|answered| answered.confidence),
                latency: took,
                queued: part.map_or(Duration::ZERO, |part| part.queued),
                batch_size: part.map_or(0, |part| part.batch_rows),
                code: code as i32,
            }
        });
    }

    fn leave_spans(
        &self,
        code: Code,
        reason: Option<&'static str>,
        took: Duration,
        answered: Option<&Answered>,
    ) {
        let path = self.method.path();
        let ended_ns = self.began_ns + took.as_nanos() as u64;
        let trace = &self.origin.trace;
        let spans = &self.plane.records.spans;
        if let Some(asked) = &self.asked {
            spans.offer(|| Span {
                trace: Trace {
                    span: fastrand::u64(1..),
                    parent: trace.span,
                    ..trace.clone()
                },
                name: "infer",
                kind: SpanKind::Internal,
                began_ns: asked.began_ns,
                ended_ns,
                code: if reason.is_some() { "UNKNOWN" } else { "OK" },
                error: reason,
                attributes: self.attributes(asked, answered),
            });
        }
        if self.is_part {
            return;
        }
        spans.offer(|| Span {
            trace: trace.clone(),
            name: &path[1..],
            kind: SpanKind::Server,
            began_ns: self.began_ns,
            ended_ns,
            code: code.name(),
            error: reason,
            attributes: vec![
                ("rpc.system", Value::Word("grpc")),
                ("rpc.method", Value::Word(path)),
                (
                    "volary.request_key",
                    Value::Text(self.origin.request_key.clone()),
                ),
            ],
        });
    }

    fn attributes(&self, asked: &Asked, answered: Option<&Answered>) -> Vec<(&'static str, Value)> {
        let about = &asked.loaded.about;
        let mut attributes = vec![
            ("volary.model", Value::Text(about.model.clone())),
            ("volary.version", Value::Number(about.version)),
            ("volary.shadow", Value::Flag(self.origin.is_shadow)),
        ];
        if let Some(Answered { part, .. }) = answered {
            let id = self.origin.prediction_id(about.version);
            attributes.extend([
                ("volary.prediction", Value::Text(id)),
                ("volary.tier", Value::Word("model")),
                ("volary.batch_rows", Value::Number(part.batch_rows as i64)),
                (
                    "volary.queue_us",
                    Value::Number(part.queued.as_micros() as i64),
                ),
            ]);
        }
        attributes
    }
}

/// Count a call in the statistics of its version.
fn note(asked: &Asked, took: Duration, answered: Option<&Answered>) {
    let mut statistics = asked.loaded.version.statistics();
    let Some(Answered { part, .. }) = answered else {
        statistics.failure.add(took);
        return;
    };
    statistics.success.add(took);
    statistics.load.add(took, Instant::now());
    statistics.queue.add(part.queued);
    statistics.recent_queue_s += 0.05 * (part.queued.as_secs_f64() - statistics.recent_queue_s);
    statistics.last_us = (now_ns() / 1_000) as i64;
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.is_over {
            self.is_cancelled.store(true, Ordering::Relaxed);
            self.end(Code::Cancelled, Some("CANCELLED"), None);
        }
    }
}

pub fn marks_of(loaded: &Loaded, tier: &'static str) -> [(HeaderName, HeaderValue); 2] {
    [
        (VERSION, loaded.number.clone()),
        (TIER, HeaderValue::from_static(tier)),
    ]
}

pub fn text_of<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or("")
}

fn origin_of(headers: &HeaderMap, is_traced: bool) -> Origin {
    let key = text_of(headers, "x-request-id");
    let attempt = text_of(headers, "x-envoy-attempt-count");
    let is_number = attempt.len() <= 3 && attempt.bytes().all(|byte| byte.is_ascii_digit());
    let traceparent = headers
        .get("traceparent")
        .and_then(|value| value.to_str().ok());
    Origin {
        request_key: if key.is_empty() {
            new_key()
        } else {
            key[..key.len().min(MAX_KEY)].to_owned() // header text is ASCII
        },
        attempt: attempt.parse().ok().filter(|_| is_number).unwrap_or(1),
        route: text_of(headers, "volary-route").to_owned(),
        is_shadow: text_of(headers, "volary-shadow").eq_ignore_ascii_case("true"),
        trace: Trace::of(traceparent, text_of(headers, "tracestate"), is_traced),
    }
}

/// A random UUID (RFC 9562, version 4).
fn new_key() -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let bits = fastrand::u128(..);
    let bits = bits & !(0xf << 76) & !(0b11 << 62) | 4 << 76 | 0b10 << 62;
    let mut text = String::with_capacity(36);
    for (place, byte) in bits.to_be_bytes().into_iter().enumerate() {
        if matches!(place, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 0xf)]));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_uuid() {
        let key = new_key();
        assert_eq!(key.len(), 36);
        assert_eq!(&key[14..15], "4");
        assert!("89ab".contains(&key[19..20]));
        assert_ne!(key, new_key());
    }

    #[test]
    fn the_origin_is_what_the_router_says() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-request-id", "abc"),
            ("x-envoy-attempt-count", "3"),
            ("volary-route", "m/r/s/7"),
            ("volary-shadow", "True"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let origin = origin_of(&headers, false);
        assert_eq!(origin.prediction_id(2), "abc.2.3");
        assert_eq!((origin.route.as_str(), origin.is_shadow), ("m/r/s/7", true));
        headers.insert("x-envoy-attempt-count", HeaderValue::from_static("1000"));
        assert_eq!(origin_of(&headers, false).attempt, 1);
    }
}
