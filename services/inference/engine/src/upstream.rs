//! The Python engine behind this one, on a Unix socket: what is not answered here is handed over.

use std::path::PathBuf;
use std::time::Duration;

use http::header::{HeaderName, HeaderValue, HOST};
use http::request::Parts;
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::UnixStream;
use tokio::sync::Mutex;

use crate::contract::{Code, Refusal};
use crate::wire::{refused, Body};

const WINDOW: u32 = 1 << 20;
// only set here: a call that there was no room for, and when there may be
const REFUSED: HeaderName = HeaderName::from_static("volary-refused");
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// In the extensions of a call that is handed over for what a lower tier says: its refusal.
#[derive(Clone)]
pub struct Refused(pub Refusal);

pub struct Upstream {
    path: PathBuf,
    sender: Mutex<Option<SendRequest<Body>>>,
}

impl Upstream {
    pub fn new(path: PathBuf) -> Self {
        Upstream {
            path,
            sender: Mutex::new(None),
        }
    }

    /// Hand a call over with its headers; the reply passes through byte by byte.
    pub async fn answer(&self, mut parts: Parts, body: Body) -> Response<Body> {
        parts.uri = passed_uri(&parts.uri);
        parts.headers.remove(HOST);
        parts.headers.remove(REFUSED);
        if let Some(Refused(refusal)) = parts.extensions.remove::<Refused>() {
            let retry = refusal.retry_after.unwrap_or_default();
            let micros = u64::try_from(retry.as_micros()).unwrap_or(u64::MAX);
            parts.headers.insert(REFUSED, HeaderValue::from(micros));
        }
        let request = Request::from_parts(parts, body);
        match self.send(request).await {
            Ok(response) => response.map(|body| Body::passing(Default::default(), Some(body))),
            Err(_) => refused(&gone(), &[]),
        }
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, std::io::Error> {
        let mut sender = self.sender().await?;
        sender
            .send_request(request)
            .await
            .map_err(std::io::Error::other)
    }

    async fn sender(&self) -> Result<SendRequest<Body>, std::io::Error> {
        let mut held = self.sender.lock().await;
        if let Some(sender) = held.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let stream = UnixStream::connect(&self.path).await?;
        let (sender, connection) = Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(4 * WINDOW)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(std::io::Error::other)?;
        tokio::spawn(connection);
        *held = Some(sender.clone());
        Ok(sender)
    }
}

/// HTTP/2 wants an authority, which a socket has none of.
fn passed_uri(uri: &Uri) -> Uri {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    Uri::builder()
        .scheme("http")
        .authority("localhost")
        .path_and_query(path)
        .build()
        .unwrap_or_else(|_| Uri::from_static("http://localhost/"))
}

fn gone() -> Refusal {
    let text = "this process is going away; connect again";
    Refusal::new(Code::Unavailable, "DRAINING", text).retry_after(RETRY_AFTER)
}
