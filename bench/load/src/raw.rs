//! Calls as the bytes that they are, on HTTP/2 itself: nothing is encoded or decoded under load,
//! and no layer between the caller and the connection takes time of the core that the load has.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::{self, Connection, SendRequest};
use h2::RecvStream;
use http::{HeaderMap, Request};
use tokio::net::TcpStream;

const WINDOW: u32 = 1 << 20;
const PREFIX: usize = 5; // a flag and the length (gRPC over HTTP/2, Length-Prefixed-Message)
const OK: i32 = 0;
const UNKNOWN: i32 = 2;
pub const DEADLINE_EXCEEDED: i32 = 4;
const UNAVAILABLE: i32 = 14;
const PAUSE: Duration = Duration::from_millis(20); // before it connects again

/// A reply: its message, and the version that the server says it is of.
pub struct Reply {
    pub message: Bytes,
    pub version: Option<String>,
}

/// What became of a call that was not answered: its code, and what was said of it.
pub struct Failure {
    pub code: i32,
    pub reason: String,
}

/// One connection at a time, made anew when it ends, as a channel of gRPC does.
pub struct Client {
    sender: RefCell<SendRequest<Bytes>>,
    head: Request<()>,
    lost: Cell<u64>,
}

impl Client {
    /// Connect; each call carries the headers of `head`.
    pub async fn connect(address: &str, head: Request<()>) -> Result<Rc<Self>, String> {
        let (sender, connection) = connection(address).await?;
        let client = Rc::new(Client {
            sender: RefCell::new(sender),
            head,
            lost: Cell::new(0),
        });
        tokio::task::spawn_local(keep(client.clone(), address.to_owned(), connection));
        Ok(client)
    }

    /// How many connections ended.
    pub fn lost(&self) -> u64 {
        self.lost.get()
    }

    /// Call once. A call whose time is over is reset.
    pub async fn call(&self, framed: Bytes, timeout: Option<Duration>) -> Result<Reply, Failure> {
        let asked = self.ask(framed);
        match timeout {
            None => asked.await,
            Some(limit) => {
                let over = |_| Failure {
                    code: DEADLINE_EXCEEDED,
                    reason: "no answer".to_owned(),
                };
                tokio::time::timeout(limit, asked).await.map_err(over)?
            }
        }
    }

    async fn ask(&self, framed: Bytes) -> Result<Reply, Failure> {
        let lost = |error: h2::Error| Failure {
            code: UNAVAILABLE,
            reason: error.to_string(),
        };
        let sender = self.sender.borrow().clone();
        let mut sender = sender.ready().await.map_err(lost)?;
        let (response, mut body) = sender
            .send_request(self.head.clone(), false)
            .map_err(lost)?;
        body.send_data(framed, true).map_err(lost)?;
        let response = response.await.map_err(lost)?;
        if let Some(code) = code_of(response.headers()) {
            return Err(refusal(code, response.headers())); // trailers only: there is no message
        }
        let version = text_of(response.headers(), "volary-version");
        let (message, trailers) = read(response.into_body()).await.map_err(lost)?;
        let code = code_of(&trailers).unwrap_or(UNKNOWN);
        if code != OK || message.len() < PREFIX {
            return Err(refusal(if code == OK { UNKNOWN } else { code }, &trailers));
        }
        let version = version.or_else(|| text_of(&trailers, "volary-version"));
        Ok(Reply {
            message: message.slice(PREFIX..),
            version,
        })
    }
}

type Open = (SendRequest<Bytes>, Connection<TcpStream, Bytes>);

async fn connection(address: &str) -> Result<Open, String> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| error.to_string())?;
    stream
        .set_nodelay(true)
        .map_err(|error| error.to_string())?;
    let opening = client::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(4 * WINDOW)
        .enable_push(false)
        .handshake(stream);
    opening.await.map_err(|error| error.to_string())
}

/// Drive the connection; when it ends, another one, for as long as the process lives.
async fn keep(client: Rc<Client>, address: String, mut open: Connection<TcpStream, Bytes>) {
    loop {
        if let Err(error) = open.await {
            eprintln!("volary-load: a connection ended: {error}");
        }
        client.lost.set(client.lost.get() + 1);
        open = loop {
            tokio::time::sleep(PAUSE).await;
            if let Ok((sender, other)) = connection(&address).await {
                *client.sender.borrow_mut() = sender;
                break other;
            }
        };
    }
}

fn refusal(code: i32, headers: &HeaderMap) -> Failure {
    Failure {
        code,
        reason: text_of(headers, "grpc-message").unwrap_or_default(),
    }
}

fn text_of(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

/// Read a body to its end: its bytes and its trailers.
async fn read(mut body: RecvStream) -> Result<(Bytes, HeaderMap), h2::Error> {
    let mut whole = Bytes::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        whole = if whole.is_empty() {
            chunk
        } else {
            [whole, chunk].concat().into()
        };
    }
    Ok((whole, body.trailers().await?.unwrap_or_default()))
}

fn code_of(headers: &HeaderMap) -> Option<i32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// Put the prefix of gRPC before a message.
pub fn framed(message: &[u8]) -> Bytes {
    let mut whole = BytesMut::with_capacity(PREFIX + message.len());
    whole.put_u8(0);
    whole.put_u32(message.len() as u32);
    whole.put_slice(message);
    whole.freeze()
}
