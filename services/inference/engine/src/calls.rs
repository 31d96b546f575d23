//! A call from its headers to its reply, in the order of the kit's rules.
//!
//! What is valid is answered here. What is not, and what this engine has no answer to, goes to
//! the Python engine with every byte of it: there is one implementation of each refusal.

use std::future::{poll_fn, Future};
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Request, Response};
use hyper::body::Incoming;
use prost::Message;

use crate::contract::inference::{
    ModelInferRequest, ModelReadyRequest, ModelReadyResponse, ServerLiveRequest,
    ServerLiveResponse, ServerReadyRequest, ServerReadyResponse,
};
use crate::contract::{Code, Refusal};
use crate::infer::{self, Meant, Outcome};
use crate::overload::{FULL, LATE};
use crate::plane::{Loaded, Method, Plane};
use crate::queue::NoRoom;
use crate::replies::reply_of;
use crate::running::{marks_of, text_of, Running};
use crate::stream;
use crate::upstream::Refused;
use crate::wire::{gather, replied, Body, Gathered};

const LOAD: HeaderName = HeaderName::from_static("endpoint-load-metrics");
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

async fn infer(
    mut call: Running,
    mut parts: Parts,
    gathered: Gathered,
    deadline: Instant,
) -> Response<Body> {
    let principal = call.principal(&parts.headers);
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
    asked.began_ns = call.now_ns();
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
    let principal = call.principal(headers);
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
}
