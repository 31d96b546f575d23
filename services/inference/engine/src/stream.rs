//! ModelStreamInfer: each message is a call of its own, answered in the order of the messages.
//!
//! Messages that came together run together: the stream reads on while earlier ones are in a
//! batch. What is not plainly valid goes to the Python engine as a ModelInfer, so that there is one
//! implementation of each refusal; its text comes back in the reply, and the stream goes on.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::engine::general_purpose::STANDARD_NO_PAD;
use base64::Engine;
use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue, CONTENT_LENGTH, CONTENT_TYPE};
use http::request::Parts;
use http::{Request, Response, Uri};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use prost::Message;
use tokio::sync::{mpsc, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use crate::calls::{falls_back, too_large};
use crate::contract::google::rpc::Status;
use crate::contract::inference::infer_parameter::ParameterChoice as Choice;
use crate::contract::inference::{
    InferParameter, ModelInferRequest, ModelInferResponse, ModelStreamInferResponse,
};
use crate::contract::{reason_of, Code, Refusal};
use crate::credentials::Principal;
use crate::infer::{self, Outcome};
use crate::messages::{Came, Messages};
use crate::plane::{Method, Plane};
use crate::records::Origin;
use crate::replies::{final_mark, in_stream, reply_of, FINAL_RESPONSE};
use crate::running::{marks_of, text_of, Running};
use crate::upstream::Refused;
use crate::wire::{
    framed, refused, streamed, timeout_header, timeout_of, Body, DETAILS, PREFIX, STATUS, TIER,
    TIMEOUT, VERSION,
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
const FINAL: &str = "triton_enable_empty_final_response";
const MODEL_CHANGED: &str = "MODEL_CHANGED: a stream stays with the model of its first message";
/// So many messages of a stream are read before the first of them is answered, and so much of them.
const AHEAD: usize = 64;
const AHEAD_BYTES: usize = 16 << 20;
const UNIT: usize = 1 << 10;

type Marks = [(HeaderName, HeaderValue); 2];

/// The reply of one message, with which version and tier it came from; Err is how the stream ends.
type Answer = Result<(Bytes, Option<Marks>), Ending>;

/// The trailers of a stream that ends before its messages do.
struct Ending {
    code: Code,
    reason: &'static str,
    trailers: HeaderMap,
}

impl Ending {
    fn of(refusal: &Refusal) -> Self {
        Ending {
            code: refusal.code,
            reason: refusal.reason,
            trailers: trailers_of(refusal),
        }
    }

    /// What Python said of a message that is none.
    fn told(mut trailers: HeaderMap) -> Self {
        trailers.remove(CONTENT_TYPE);
        Ending {
            code: Code::InvalidArgument,
            reason: "MESSAGE_REFUSED",
            trailers,
        }
    }
}

/// What all messages of a stream have in common.
struct Stream {
    plane: Arc<Plane>,
    headers: HeaderMap,
    principal: Arc<Principal>,
    origin: Origin,
}

/// A message that is being answered; dropped, it is cancelled.
struct Answering {
    task: JoinHandle<Answer>,
    _room: OwnedSemaphorePermit,
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Answer a stream, or hand it over as a whole where its headers are not plainly valid.
pub async fn answer(call: Running, parts: Parts, body: Incoming) -> Response<Body> {
    let encoding = text_of(&parts.headers, "grpc-encoding");
    let is_plain = encoding.is_empty() || encoding == "identity";
    let timeout = timeout_of(&parts.headers).ok().filter(|_| is_plain);
    let principal = call.principal(&parts.headers);
    let (Some(timeout), Some(principal)) = (timeout, principal) else {
        let body = Body::passing(VecDeque::new(), Some(body));
        return call.hand_over(parts, body).await;
    };
    let until = timeout.map(|timeout| call.began + timeout);
    let stream = Arc::new(Stream {
        plane: call.plane.clone(),
        headers: parts.headers,
        principal,
        origin: call.origin.clone(),
    });
    let (frames, flowing) = mpsc::channel(1);
    tokio::spawn(pump(call, stream, body, until, frames));
    streamed(Body::flowing(flowing))
}

/// Read, answer and write until one side ends.
async fn pump(
    call: Running,
    stream: Arc<Stream>,
    body: Incoming,
    until: Option<Instant>,
    frames: mpsc::Sender<Frame<Bytes>>,
) {
    let plane = stream.plane.clone();
    let (queue, answers) = mpsc::channel(AHEAD);
    let mut reading = pin!(read(stream, body, queue));
    let mut writing = pin!(write(answers, &frames));
    let late = async {
        match until {
            Some(until) => tokio::time::sleep_until(until.into()).await,
            None => std::future::pending().await,
        }
    };
    let mut late = pin!(late);
    let mut left = None;
    let last = loop {
        tokio::select! {
            ending = &mut reading, if left.is_none() => match ending {
                Some(Came::Gone) => return, // the call is dropped, and counted as cancelled
                ending => left = Some(ending),
            },
            last = &mut writing => break last,
            () = &mut late => {
                let text = "the call did not finish within its deadline";
                let refusal = Refusal::new(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", text);
                break Err(Ending::of(&refusal));
            }
            () = frames.closed() => return,
        }
    };
    // the answers of all that was read are written: now what could not be read
    let ended = match (last, left.flatten()) {
        (Ok(_), Some(Came::TooLarge(length))) => {
            let refusal = too_large(&plane, Method::ModelStreamInfer, length);
            Err(Ending::of(&refusal))
        }
        (Ok(_), Some(_)) => Err(Ending::of(&broken())),
        (last, _) => last,
    };
    let trailers = match ended {
        Ok(marks) => {
            call.ended(Code::Ok, None);
            let mut trailers = HeaderMap::new();
            trailers.insert(STATUS, HeaderValue::from_static("0"));
            trailers.extend(marks.into_iter().flatten());
            trailers
        }
        Err(ending) => {
            call.ended(ending.code, Some(ending.reason));
            ending.trailers
        }
    };
    let _ = frames.send(Frame::trailers(trailers)).await;
}

/// Begin to answer each message; return what ended them, None for their own end.
async fn read(stream: Arc<Stream>, body: Incoming, queue: mpsc::Sender<Answering>) -> Option<Came> {
    let limit = stream.plane.row(Method::ModelStreamInfer).max_request_bytes;
    let mut messages = Messages::of(body, limit);
    let room = Arc::new(Semaphore::new(AHEAD_BYTES / UNIT));
    let mut first: Option<String> = None;
    let mut position = 0;
    loop {
        let message = match messages.next().await {
            Ok(Some(message)) => message,
            Ok(None) => return None,
            Err(came) => return Some(came),
        };
        let units = message.len().div_ceil(UNIT).min(AHEAD_BYTES / UNIT) as u32;
        let permit = room.clone().acquire_many_owned(units).await.ok()?;
        let request = (message[0] == 0)
            .then(|| ModelInferRequest::decode(message.slice(PREFIX..)).ok())
            .flatten();
        let is_other = request.as_ref().is_some_and(|request| {
            *first.get_or_insert_with(|| request.model_name.clone()) != request.model_name
        });
        let task = tokio::spawn(answered(
            stream.clone(),
            position,
            message,
            request,
            is_other,
        ));
        position += 1;
        let answering = Answering {
            task,
            _room: permit,
        };
        if queue.send(answering).await.is_err() {
            return None;
        }
    }
}

/// Write the replies in the order of the messages; return where the last one came from.
async fn write(
    mut answers: mpsc::Receiver<Answering>,
    frames: &mpsc::Sender<Frame<Bytes>>,
) -> Result<Option<Marks>, Ending> {
    let mut last = None;
    while let Some(mut answering) = answers.recv().await {
        let Ok(answer) = (&mut answering.task).await else {
            return Err(Ending::of(&broken())); // it panicked
        };
        let (reply, marks) = answer?;
        if frames.send(Frame::data(reply)).await.is_err() {
            break;
        }
        last = marks.or(last);
    }
    Ok(last)
}

/// Answer one message.
async fn answered(
    stream: Arc<Stream>,
    position: u64,
    frame: Bytes,
    request: Option<ModelInferRequest>,
    is_other: bool,
) -> Answer {
    let deadline = Instant::now() + stream.plane.stream_timeout();
    let Some(request) = request else {
        // no message at all: what Python says of it ends the stream
        let told = stream.ask_python(position, frame, deadline, None).await;
        return told
            .map(|(reply, marks)| (in_stream(&reply, &[]), marks))
            .map_err(Ending::told);
    };
    let about = Asking {
        id: request.id.clone(),
        model: request.model_name.clone(),
        is_final_marked: is_final_marked(&request),
        frame,
        position,
        deadline,
    };
    if is_other {
        return Ok((about.failed(MODEL_CHANGED.to_owned()), None));
    }
    let table = stream.plane.table();
    let header = text_of(&stream.headers, "volary-version");
    match infer::planned(&table, &stream.principal.project, request, header, None) {
        Some((asked, inputs)) => stream.run(about, asked, inputs).await,
        None => stream.handed_over(about, None).await,
    }
}

/// One message, as its reply names it.
struct Asking {
    id: String,
    model: String,
    is_final_marked: bool,
    frame: Bytes,
    position: u64,
    deadline: Instant,
}

impl Asking {
    fn failed(&self, error_message: String) -> Bytes {
        let mut response = ModelInferResponse {
            id: self.id.clone(),
            model_name: self.model.clone(),
            ..ModelInferResponse::default()
        };
        if self.is_final_marked {
            let is_final = InferParameter {
                parameter_choice: Some(Choice::BoolParam(true)),
            };
            let name = FINAL_RESPONSE.to_owned();
            response.parameters.insert(name, is_final);
        }
        framed(&ModelStreamInferResponse {
            error_message,
            infer_response: Some(response),
        })
    }

    fn replied(&self, response: &[u8]) -> Bytes {
        in_stream(
            response,
            if self.is_final_marked {
                final_mark()
            } else {
                &[]
            },
        )
    }
}

impl Stream {
    /// Run a message's rows, in a batch with whatever else waits for its version.
    async fn run(
        &self,
        about: Asking,
        asked: infer::Asked,
        inputs: Vec<crate::version::Array>,
    ) -> Answer {
        let loaded = asked.loaded.clone();
        let deadline = asked.timeout.map_or(about.deadline, |timeout| {
            about.deadline.min(Instant::now() + timeout)
        });
        let place = (asked.priority, deadline);
        let mut part = Running::part_of(self.plane.clone(), self.origin_of(about.position), asked);
        let cancelled = part.is_cancelled.clone();
        match infer::run(&loaded, inputs, place, cancelled, &self.plane.turn).await {
            Outcome::Part(found) => {
                let asked = part.take_asked();
                let Some(answered) = infer::answered(&asked, found) else {
                    return self.handed_over(about, None).await;
                };
                let reply = reply_of(&asked, &answered, &part.origin);
                part.answered(asked, answered);
                Ok((
                    about.replied(&reply[PREFIX..]),
                    Some(marks_of(&loaded, "model")),
                ))
            }
            Outcome::Refused(refusal) if falls_back(&loaded, &refusal) => {
                drop(part.take_asked());
                self.handed_over(about, Some(refusal)).await
            }
            Outcome::Refused(refusal) => {
                part.ended(refusal.code, Some(refusal.reason));
                let text = format!("{}: {}", refusal.reason, refusal.message);
                Ok((about.failed(text), Some(marks_of(&loaded, "none"))))
            }
            Outcome::NotHere => {
                drop(part.take_asked());
                self.handed_over(about, None).await
            }
        }
    }

    /// Have Python answer a message; what it refuses is told in the reply.
    async fn handed_over(&self, about: Asking, refusal: Option<Refusal>) -> Answer {
        let frame = about.frame.clone();
        let told = self
            .ask_python(about.position, frame, about.deadline, refusal)
            .await;
        match told {
            Ok((response, marks)) => Ok((about.replied(&response), marks)),
            Err(trailers) => {
                let (reason, text) = told_in(&trailers);
                if breaks_a_rule(&about.frame, &reason) {
                    return Err(Ending::told(trailers));
                }
                Ok((
                    about.failed(format!("{reason}: {text}")),
                    marks_in(&trailers),
                ))
            }
        }
    }

    /// Send a message as a ModelInfer; Err has the trailers of a refusal.
    async fn ask_python(
        &self,
        position: u64,
        frame: Bytes,
        deadline: Instant,
        refusal: Option<Refusal>,
    ) -> Result<(Bytes, Option<Marks>), HeaderMap> {
        let mut parts = Request::new(()).into_parts().0;
        parts.method = http::Method::POST;
        parts.version = http::Version::HTTP_2;
        parts.uri = Uri::from_static(Method::ModelInfer.path());
        parts.headers = self.headers.clone();
        parts.headers.remove(CONTENT_LENGTH);
        parts
            .headers
            .insert(TIMEOUT, timeout_header(deadline, Instant::now()));
        let origin = self.origin_of(position);
        for (name, text) in [
            (REQUEST_ID, &origin.request_key),
            (TRACE_PARENT, &origin.trace.traceparent()),
        ] {
            if let Ok(value) = HeaderValue::from_str(text) {
                parts.headers.insert(name, value);
            }
        }
        if let Some(refusal) = refusal {
            parts.extensions.insert(Refused(refusal));
        }
        let body = Body::passing(VecDeque::from([frame]), None);
        let (head, body) = self.plane.upstream.answer(parts, body).await.into_parts();
        let Ok(whole) = body.collect().await else {
            return Err(trailers_of(&broken()));
        };
        let trailers = whole.trailers().cloned().unwrap_or(head.headers);
        let data = whole.to_bytes();
        let is_ok = trailers.get(STATUS).is_some_and(|status| status == "0");
        if is_ok && data.len() >= PREFIX {
            return Ok((data.slice(PREFIX..), marks_in(&trailers)));
        }
        Err(trailers)
    }

    /// How a message came: its key is the stream's and its position.
    fn origin_of(&self, position: u64) -> Origin {
        let request_key = format!("{}/{position}", self.origin.request_key);
        Origin {
            request_key,
            ..self.origin.clone()
        }
    }
}

fn is_final_marked(request: &ModelInferRequest) -> bool {
    let choice = request
        .parameters
        .get(FINAL)
        .and_then(|parameter| parameter.parameter_choice.as_ref());
    choice == Some(&Choice::BoolParam(true))
}

fn marks_in(trailers: &HeaderMap) -> Option<Marks> {
    let (version, tier) = (trailers.get(VERSION)?, trailers.get(TIER)?);
    Some([(VERSION, version.clone()), (TIER, tier.clone())])
}

/// Reason and text of a refusal.
fn told_in(trailers: &HeaderMap) -> (String, String) {
    let details = trailers.get(DETAILS).and_then(|value| {
        let text = value.as_bytes();
        let end = text.iter().rposition(|byte| *byte != b'=')? + 1;
        STANDARD_NO_PAD.decode(&text[..end]).ok()
    });
    match details.and_then(|bytes| Status::decode(&bytes[..]).ok()) {
        Some(status) => (reason_of(&status), status.message),
        None => ("UNAVAILABLE".into(), "the call was not answered".into()),
    }
}

fn trailers_of(refusal: &Refusal) -> HeaderMap {
    let mut trailers = refused(refusal, &[]).into_parts().0.headers;
    trailers.remove(CONTENT_TYPE);
    trailers
}

/// Whether a message breaks a rule that holds for every message, not one of its model's.
fn breaks_a_rule(frame: &Bytes, reason: &str) -> bool {
    reason == "INVALID_REQUEST" || (reason == "NOT_A_NUMBER" && has_nan_field(frame))
}

/// Whether NaN stands in a field of the message, where raw bytes are none.
fn has_nan_field(frame: &Bytes) -> bool {
    let Ok(request) = ModelInferRequest::decode(frame.slice(PREFIX..)) else {
        return true;
    };
    let inputs = request.inputs.iter().map(|input| &input.parameters);
    let outputs = request.outputs.iter().map(|output| &output.parameters);
    let all = inputs.chain(outputs).chain([&request.parameters]);
    let mut choices = all.flat_map(|each| each.values().map(|value| &value.parameter_choice));
    let is_nan = |choice: &Option<Choice>| matches!(choice, Some(Choice::DoubleParam(number)) if number.is_nan());
    let mut contents = request
        .inputs
        .iter()
        .filter_map(|input| input.contents.as_ref());
    choices.any(is_nan)
        || contents.any(|each| {
            let mut singles = each.fp32_contents.iter();
            let mut doubles = each.fp64_contents.iter();
            singles.any(|number| number.is_nan()) || doubles.any(|number| number.is_nan())
        })
}

fn broken() -> Refusal {
    let text = "the stream broke off";
    Refusal::new(Code::Unavailable, "STREAM_BROKEN", text).retry_after(Duration::from_millis(100))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::inference::model_infer_request::InferInputTensor;
    use crate::contract::inference::InferTensorContents;
    use crate::messages::announced;

    fn with(contents: Option<InferTensorContents>, raw: Vec<Bytes>) -> Bytes {
        framed(&ModelInferRequest {
            inputs: vec![InferInputTensor {
                contents,
                ..Default::default()
            }],
            raw_input_contents: raw,
            ..Default::default()
        })
    }

    #[test]
    fn nan_in_a_field_breaks_a_rule_and_nan_in_bytes_does_not() {
        let typed = |fp32_contents| {
            with(
                Some(InferTensorContents {
                    fp32_contents,
                    ..Default::default()
                }),
                vec![],
            )
        };
        let raw = with(None, vec![f32::NAN.to_le_bytes().to_vec().into()]);
        assert!(breaks_a_rule(&typed(vec![1.0, f32::NAN]), "NOT_A_NUMBER"));
        assert!(!breaks_a_rule(&typed(vec![1.0]), "NOT_A_NUMBER"));
        assert!(!breaks_a_rule(&raw, "NOT_A_NUMBER"));
        assert!(breaks_a_rule(&raw, "INVALID_REQUEST"));
        assert!(!breaks_a_rule(&typed(vec![f32::NAN]), "MODEL_NOT_FOUND"));
    }

    #[test]
    fn a_refusal_is_read_back_from_its_trailers() {
        let trailers = trailers_of(&broken());
        let (reason, text) = told_in(&trailers);
        assert_eq!(reason, "STREAM_BROKEN");
        assert_eq!(text, "the stream broke off");
        assert!(!trailers.contains_key(CONTENT_TYPE));
        assert_eq!(told_in(&HeaderMap::new()).0, "UNAVAILABLE");
    }

    #[test]
    fn a_response_in_a_stream_reads_as_the_generated_types_do() {
        let response = ModelInferResponse {
            id: "7".into(),
            ..Default::default()
        };
        let framed = in_stream(&response.encode_to_vec(), final_mark());
        assert_eq!(announced(&framed), Some(framed.len() - PREFIX));
        let found = ModelStreamInferResponse::decode(framed.slice(PREFIX..)).unwrap();
        let found = found.infer_response.unwrap();
        assert_eq!(found.id, "7");
        let mark = &found.parameters[FINAL_RESPONSE];
        assert_eq!(mark.parameter_choice, Some(Choice::BoolParam(true)));
    }
}
