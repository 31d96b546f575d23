//! gRPC over HTTP/2 by its bytes: bodies, one message of a call, and how a call ends.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use base64::engine::general_purpose::STANDARD_NO_PAD;
use base64::Engine;
use bytes::{Bytes, BytesMut};
use http::header::{HeaderMap, HeaderName, HeaderValue, CONTENT_TYPE};
use http::Response;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use prost::Message;
use tokio::sync::mpsc;

use crate::contract::Refusal;

pub const PREFIX: usize = 5; // one byte of compression, four of length
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
pub const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
pub const DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
pub const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
pub const VERSION: HeaderName = HeaderName::from_static("volary-version");
pub const TIER: HeaderName = HeaderName::from_static("volary-tier");

/// A body: what was read of another one and the rest of it, or one message and trailers.
#[derive(Default)]
pub struct Body {
    chunks: VecDeque<Bytes>,
    rest: Option<Incoming>,
    trailers: Option<HeaderMap>,
    frames: Option<mpsc::Receiver<Frame<Bytes>>>,
}

impl Body {
    /// A body whose frames come as they are made.
    pub fn flowing(frames: mpsc::Receiver<Frame<Bytes>>) -> Self {
        Body {
            frames: Some(frames),
            ..Body::default()
        }
    }

    pub fn passing(chunks: VecDeque<Bytes>, rest: Option<Incoming>) -> Self {
        Body {
            chunks,
            rest,
            ..Body::default()
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(chunk) = self.chunks.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        if let Some(frames) = &mut self.frames {
            return frames.poll_recv(context).map(|frame| frame.map(Ok));
        }
        if let Some(rest) = &mut self.rest {
            return Pin::new(rest).poll_frame(context);
        }
        Poll::Ready(self.trailers.take().map(|last| Ok(Frame::trailers(last))))
    }

    fn is_end_stream(&self) -> bool {
        let is_rest_over = self.rest.as_ref().is_none_or(Incoming::is_end_stream);
        self.chunks.is_empty() && is_rest_over && self.trailers.is_none() && self.frames.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// What was read of a unary call's request.
pub struct Gathered {
    pub chunks: VecDeque<Bytes>,
    pub rest: Option<Incoming>,
    /// The one message, when it is whole, plain and not too large.
    pub message: Option<Bytes>,
    /// The length of a message that is too large, as its prefix announces it.
    pub too_large: Option<usize>,
}

impl Gathered {
    /// The body again, from its beginning.
    pub fn again(self) -> Body {
        Body::passing(self.chunks, self.rest)
    }
}

/// Read the request of a unary call; None when the caller went away.
pub async fn gather(mut body: Incoming, limit: usize) -> Option<Gathered> {
    let mut chunks: VecDeque<Bytes> = VecDeque::new();
    let mut size = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.ok()?.into_data() else {
            continue;
        };
        size += data.len();
        if !data.is_empty() {
            chunks.push_back(data);
        }
        let too_large = length_of(&chunks).filter(|length| *length > limit);
        if size > limit + PREFIX || too_large.is_some() {
            return Some(Gathered {
                chunks,
                rest: Some(body),
                message: None,
                too_large,
            });
        }
    }
    let is_whole = length_of(&chunks).is_some_and(|length| length + PREFIX == size);
    let message = is_whole.then(|| joined(&chunks, size));
    Some(Gathered {
        chunks,
        rest: None,
        message,
        too_large: None,
    })
}

/// The length that the prefix announces; None while it is not there, or when it is compressed.
fn length_of(chunks: &VecDeque<Bytes>) -> Option<usize> {
    let mut prefix = chunks.iter().flatten().copied().take(PREFIX);
    if prefix.next()? != 0 {
        return None;
    }
    (1..PREFIX).try_fold(0, |length, _| {
        Some(length << 8 | usize::from(prefix.next()?))
    })
}

fn joined(chunks: &VecDeque<Bytes>, size: usize) -> Bytes {
    if let [chunk] = chunks.as_slices().0 {
        if chunks.len() == 1 {
            return chunk.slice(PREFIX..);
        }
    }
    let mut whole = BytesMut::with_capacity(size);
    for chunk in chunks {
        whole.extend_from_slice(chunk);
    }
    whole.freeze().slice(PREFIX..)
}

/// A message as the body of a call carries it.
pub fn framed(message: &impl Message) -> Bytes {
    frame_of(message.encoded_len(), |out| message.encode_raw(out))
}

/// What is written, with its prefix; of about so many bytes.
pub fn frame_of(about: usize, write: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let mut out = Vec::with_capacity(PREFIX + about);
    out.extend_from_slice(&[0; PREFIX]);
    write(&mut out);
    let length = (out.len() - PREFIX) as u32;
    out[1..PREFIX].copy_from_slice(&length.to_be_bytes());
    out.into()
}

/// The response of a call that is answered, with a framed message.
pub fn replied(message: Bytes, marks: &[(HeaderName, HeaderValue)]) -> Response<Body> {
    let mut trailers = HeaderMap::with_capacity(1 + marks.len());
    trailers.insert(STATUS, HeaderValue::from_static("0"));
    trailers.extend(marks.iter().cloned());
    let mut response = Response::new(Body {
        chunks: VecDeque::from([message]),
        rest: None,
        trailers: Some(trailers),
        frames: None,
    });
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    response
}

/// The response whose messages and trailers come as they are made.
pub fn streamed(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    response
}

/// The response of a call that is refused: trailers only, so that a router may retry it.
pub fn refused(refusal: &Refusal, marks: &[(HeaderName, HeaderValue)]) -> Response<Body> {
    let mut response = Response::new(Body::default());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, GRPC);
    headers.insert(STATUS, HeaderValue::from(refusal.code as u16));
    if let Ok(text) = HeaderValue::from_str(&percent_encoded(&refusal.message)) {
        headers.insert(MESSAGE, text);
    }
    let details = STANDARD_NO_PAD.encode(refusal.details());
    if let Ok(details) = HeaderValue::from_str(&details) {
        headers.insert(DETAILS, details);
    }
    if let Some(delay) = refusal.retry_after {
        let ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX).max(1);
        headers.insert(PUSHBACK, HeaderValue::from(ms));
    }
    headers.extend(marks.iter().cloned());
    response
}

fn percent_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// The caller's time limit; Err when the header is malformed.
pub fn timeout_of(headers: &HeaderMap) -> Result<Option<Duration>, ()> {
    let Some(value) = headers.get(TIMEOUT) else {
        return Ok(None);
    };
    let text = value.to_str().map_err(drop)?;
    let (digits, unit) = text
        .split_at_checked(text.len().saturating_sub(1))
        .ok_or(())?;
    let is_number = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    if !is_number {
        return Err(());
    }
    let number: u64 = digits.parse().map_err(drop)?;
    Ok(Some(match unit {
        "H" => Duration::from_secs(number * 3_600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return Err(()),
    }))
}

/// The header that gives the next process what is left of a deadline.
pub fn timeout_header(deadline: Instant, now: Instant) -> HeaderValue {
    let left = deadline.saturating_duration_since(now);
    let text = match left.as_micros() {
        micros @ 0..=99_999_999 => format!("{micros}u"),
        _ => format!("{}m", left.as_millis().min(99_999_999)),
    };
    HeaderValue::from_str(&text).expect("digits and a letter")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeout(text: &'static str) -> Result<Option<Duration>, ()> {
        let mut headers = HeaderMap::new();
        headers.insert(TIMEOUT, HeaderValue::from_static(text));
        timeout_of(&headers)
    }

    #[test]
    fn timeouts_are_read_in_every_unit() {
        assert_eq!(timeout("20m"), Ok(Some(Duration::from_millis(20))));
        assert_eq!(timeout("3S"), Ok(Some(Duration::from_secs(3))));
        assert_eq!(
            timeout("99999999H").unwrap().unwrap().as_secs(),
            359_999_996_400
        );
        assert_eq!(timeout_of(&HeaderMap::new()), Ok(None));
        for malformed in ["", "S", "1", "123456789m", "-1S", "1x", "1.5S"] {
            assert_eq!(timeout(malformed), Err(()), "{malformed:?}");
        }
    }

    #[test]
    fn what_is_left_is_handed_on() {
        let now = Instant::now();
        let of = |left| timeout_header(now + left, now);
        assert_eq!(of(Duration::from_micros(1_500)), "1500u");
        assert_eq!(of(Duration::from_secs(3_600)), "3600000m");
        assert_eq!(timeout_header(now, now + Duration::from_secs(1)), "0u");
    }

    #[test]
    fn a_prefix_may_come_in_pieces() {
        let whole = [0, 0, 0, 1, 2];
        let chunks = whole.iter().map(|byte| Bytes::copy_from_slice(&[*byte]));
        assert_eq!(length_of(&chunks.collect()), Some(258));
        assert_eq!(
            length_of(&VecDeque::from([Bytes::from_static(&[0, 0])])),
            None
        );
        let compressed = Bytes::from_static(&[1, 0, 0, 0, 0]);
        assert_eq!(length_of(&VecDeque::from([compressed])), None);
    }

    #[test]
    fn a_status_message_is_printable() {
        assert_eq!(percent_encoded("50 % é"), "50 %25 %C3%A9");
    }
}
