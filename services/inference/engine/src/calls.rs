//! A call from its headers to its reply, in the order of the kit's rules.
//!
//! What is valid is answered here. What is not, and what this engine has no answer to, goes to
//! the Python engine with every byte of it: there is one implementation of each refusal.

use std::future::{poll_fn, Future};
use std::pin::{pin, Pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Request, Response};
use hyper::body::Incoming;
use prost::Message;

use crate::contract::inference::{
    ModelInferRequest, ModelReadyRequest, ModelReadyResponse, ServerLiveRequest,
    ServerLiveResponse, ServerReadyRequest, ServerReadyResponse,
};
use crate::contract::volary::otlp::v1::SpanKind;
use crate::contract::{Code, Refusal};
use crate::credentials::Principal;
use crate::infer::{self, Answered, Asked, Meant, Outcome};
use crate::overload::{Overload, FULL, LATE};
use crate::plane::{Loaded, Method, Plane};
use crate::queue::NoRoom;
use crate::records::{now_ns, Origin, Prediction, Span, Trace, Value};
use crate::replies::reply_of;
use crate::stream;
use crate::upstream::Refused;
use crate::version::Part;
use crate::wire::{
    framed, gather, refused, replied, timeout_header, timeout_of, Body, Gathered, TIER, TIMEOUT,
    VERSION,
};

const LOAD: HeaderName = HeaderName::from_static("endpoint-load-metrics");
const RETRY_AFTER: Duration = Duration::from_millis(100);
const MAX_KEY: usize = 128;
const SERVING: i32 = 1;
const NOT_SERVING: i32 = 2;

/// Answer one call, whatever it is.
pub async fn answer(plane: Arc<Plane>, request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let Some(method) = Method::of(parts.uri.path()) else {
        let body = Body::passing(Default::default(), Some(body));
        return Box::pin(plane.upstream.answer(parts, body)).await;
    };
    let call = Running::begin(plane, method, &parts.headers);
    if let Some(refusal) = call.full() {
        return call.refuse(&refusal, None);
    }
    if method == Method::ModelStreamInfer {
        return Box::pin(stream::answer(call, parts, body)).await;
    }
    let Some(deadline) = call.deadline(&parts.headers) else {
        return call
            .hand_over(parts, Body::passing(Default::default(), Some(body)))
            .await;
    };
    let limit = call.plane.row(method).max_request_bytes;
    let mut gathering = pin!(gather(body, limit));
    let first = poll_fn(|context| Poll::Ready(gathering.as_mut().poll(context))).await;
    let gathered = match first {
        Poll::Ready(gathered) => Ok(gathered), // most are whole when they are seen: no timer
        Poll::Pending => Box::pin(tokio::time::timeout_at(deadline.into(), gathering)).await,
    };
    let gathered = match gathered {
        Err(_) => return call.refuse(&expired(method), None),
        Ok(None) => return call.cancelled(),
        Ok(Some(gathered)) => gathered,
    };
    match method {
        Method::ModelInfer => infer(call, parts, gathered, deadline).await,
        _ => probe(call, parts, gathered).await,
    }
}

/// A call in flight; one that is dropped before its end was cancelled.
pub struct Running {
    plane: Arc<Plane>,
    method: Method,
    began: Instant,
    began_ns: u64,
    in_flight: usize,
    origin: Origin,
    asked: Option<Asked>,
    is_cancelled: Arc<AtomicBool>,
    is_over: bool,
    /// A message of a stream: the stream is the call that counts.
    is_part: bool,
}

impl Running {
    fn begin(plane: Arc<Plane>, method: Method, headers: &HeaderMap) -> Self {
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

    pub fn plane(&self) -> Arc<Plane> {
        self.plane.clone()
    }

    pub fn began(&self) -> Instant {
        self.began
    }

    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    pub fn cancelled_flag(&self) -> Arc<AtomicBool> {
        self.is_cancelled.clone()
    }

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

    fn full(&self) -> Option<Refusal> {
        let limit = self.plane.max_calls;
        (self.in_flight > limit).then(|| {
            let text = format!("{limit} calls are in flight, which is the limit");
            Refusal::new(Code::ResourceExhausted, "TOO_MANY_CALLS", text)
                .with("limit", limit)
                .retry_after(RETRY_AFTER)
        })
    }

    /// The deadline that holds; None when the caller's is malformed.
    fn deadline(&self, headers: &HeaderMap) -> Option<Instant> {
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
    fn turn_away(
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

    fn reply(
        mut self,
        message: &impl Message,
        marks: &[(HeaderName, HeaderValue)],
    ) -> Response<Body> {
        let response = replied(framed(message), marks);
        self.end(Code::Ok, None, None);
        response
    }

    fn refuse(mut self, refusal: &Refusal, loaded: Option<&Loaded>) -> Response<Body> {
        let marks = loaded.map(|loaded| marks_of(loaded, "none"));
        let response = refused(refusal, marks.as_ref().map_or(&[], |marks| &marks[..]));
        self.end(refusal.code, Some(refusal.reason), None);
        response
    }

    fn cancelled(mut self) -> Response<Body> {
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
    fn end(&mut self, code: Code, reason: Option<&'static str>, answered: Option<Answered>) {
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

async fn infer(
    mut call: Running,
    mut parts: Parts,
    gathered: Gathered,
    deadline: Instant,
) -> Response<Body> {
    let principal = call
        .plane
        .principal_of(call.method, &parts.headers, call.began);
    let header = text_of(&parts.headers, "volary-version");
    if let Some(length) = gathered.too_large.filter(|_| principal.is_some()) {
        // what is left of it is not even read: the stream is reset behind the refusal
        let refusal = too_large(&call.plane, call.method, length);
        return call.refuse(&refusal, None);
    }
    let table = call.plane.table();
    let meant = principal.as_ref().and_then(|principal| {
        let message = gathered.message.as_ref()?;
        Meant::by(&table, &principal.project, message, header)
    });
    // where a lower tier may answer, it has to be known what was asked
    if let Some(Meant { loaded, .. }) = meant
        .as_ref()
        .filter(|meant| !meant.loaded.version.has_tiers.load(Ordering::Relaxed))
    {
        match loaded.version.refusal(deadline, Instant::now()) {
            Some(NoRoom::Late(retry)) => return call.turn_away(&LATE, retry, loaded),
            Some(NoRoom::Full(retry)) => return call.turn_away(&FULL, retry, loaded),
            Some(NoRoom::Closing) | None => (),
        }
    }
    let plan = principal.and_then(|principal| {
        let request = ModelInferRequest::decode(gathered.message.clone()?).ok()?;
        infer::planned(&table, &principal.project, request, header, meant)
    });
    drop(table);
    let Some((mut asked, inputs)) = plan else {
        return call.hand_over(parts, gathered.again()).await;
    };
    asked.began_ns = call.began_ns + call.began.elapsed().as_nanos() as u64;
    let deadline = asked
        .timeout
        .map_or(deadline, |timeout| deadline.min(call.began + timeout));
    let (loaded, place) = (asked.loaded.clone(), (asked.priority, deadline));
    call.asked = Some(asked);
    let is_cancelled = call.is_cancelled.clone();
    let outcome = infer::run(&loaded, inputs, place, is_cancelled, &call.plane.turn).await;
    match outcome {
        Outcome::Part(part) => {
            let asked = call.asked.take().expect("it was put there above");
            let Some(answered) = infer::answered(&asked, part) else {
                return call.hand_over(parts, gathered.again()).await;
            };
            let reply = reply_of(&asked, &answered, &call.origin);
            call.asked = Some(asked);
            let response = replied(reply, &marks_of_answer(&loaded));
            call.end(Code::Ok, None, Some(answered));
            response
        }
        Outcome::Refused(refusal) if falls_back(&loaded, &refusal) => {
            call.asked = None;
            parts.extensions.insert(Refused(refusal));
            call.hand_over(parts, gathered.again()).await
        }
        Outcome::Refused(refusal) => call.refuse(&refusal, Some(&loaded)),
        Outcome::NotHere => {
            call.asked = None;
            call.hand_over(parts, gathered.again()).await
        }
    }
}

async fn probe(call: Running, parts: Parts, gathered: Gathered) -> Response<Body> {
    let message = gathered.message.clone();
    let plane = call.plane.clone();
    match call.method {
        Method::ServerLive => {
            if read::<ServerLiveRequest>(message).is_some() {
                return call.reply(&ServerLiveResponse { live: true }, &[]);
            }
        }
        Method::ServerReady => {
            let ready = read::<ServerReadyRequest>(message).and_then(|_| plane.health_of(""));
            if let Some(ready) = ready {
                return call.reply(&ServerReadyResponse { ready }, &[]);
            }
        }
        Method::HealthCheck => {
            let status = read::<HealthCheckRequest>(message)
                .and_then(|request| plane.health_of(&request.service));
            if let Some(is_serving) = status {
                let status = if is_serving { SERVING } else { NOT_SERVING };
                return call.reply(&HealthCheckResponse { status }, &[]);
            }
        }
        _ => {
            if is_model_ready(&call, &parts.headers, message) {
                return call.reply(&ModelReadyResponse { ready: true }, &[]);
            }
        }
    }
    call.hand_over(parts, gathered.again()).await
}

fn is_model_ready(call: &Running, headers: &HeaderMap, message: Option<bytes::Bytes>) -> bool {
    let principal = call.plane.principal_of(call.method, headers, call.began);
    let (Some(principal), Some(request)) = (principal, read::<ModelReadyRequest>(message)) else {
        return false;
    };
    infer::chosen(
        &call.plane.table(),
        &principal.project,
        &request.name,
        &request.version,
    )
    .is_some()
}

fn read<M: Message + Default>(message: Option<bytes::Bytes>) -> Option<M> {
    M::decode(message?).ok()
}

/// Whether Python has an answer of a lower tier: to what there is no room for, not to what is late.
pub fn falls_back(loaded: &Loaded, refusal: &Refusal) -> bool {
    refusal.code == Code::ResourceExhausted && loaded.version.has_tiers.load(Ordering::Relaxed)
}

pub fn marks_of(loaded: &Loaded, tier: &'static str) -> [(HeaderName, HeaderValue); 2] {
    [
        (VERSION, loaded.number.clone()),
        (TIER, HeaderValue::from_static(tier)),
    ]
}

/// The marks of the model's own answer, with the version's load for Envoy.
fn marks_of_answer(loaded: &Loaded) -> Vec<(HeaderName, HeaderValue)> {
    let mut marks = Vec::with_capacity(3);
    marks.extend(marks_of(loaded, "model"));
    let report = loaded.version.statistics().load.report();
    marks.extend(report.map(|report| (LOAD, report)));
    marks
}

fn expired(method: Method) -> Refusal {
    let text = "the call did not finish within its deadline";
    Refusal::new(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", text).with("method", method.path())
}

/// What is said of a message as soon as its prefix announces more than its method takes.
pub fn too_large(plane: &Plane, method: Method, length: usize) -> Refusal {
    let (path, limit) = (method.path(), plane.row(method).max_request_bytes);
    let text = format!("a request message has {length} bytes, {path} takes {limit}");
    Refusal::new(Code::ResourceExhausted, "REQUEST_TOO_LARGE", text)
        .with("bytes", length)
        .with("max_bytes", limit)
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

/// `grpc.health.v1.HealthCheckRequest`, which is no part of the contract's descriptors.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_call_may_need_is_not_made_for_each() {
        fn size<F>(_: impl Fn(Arc<Plane>, Request<Incoming>) -> F) -> usize {
            std::mem::size_of::<F>()
        }
        assert!(size(answer) <= 4_096, "{}", size(answer)); // it is moved when it begins
    }

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
