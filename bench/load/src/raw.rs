//! Calls as the bytes that they are, on HTTP/2 itself: nothing is encoded or decoded under load,
//! and no layer between the caller and the connection takes time of the core that the load has.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::{self, SendRequest};
use h2::RecvStream;
use http::{HeaderMap, Request};
use tokio::net::TcpStream;

const WINDOW: u32 = 1 << 20;
const PREFIX: usize = 5; // a flag and the length (gRPC over HTTP/2, Length-Prefixed-Message)
const OK: i32 = 0;
const UNKNOWN: i32 = 2;
pub const DEADLINE_EXCEEDED: i32 = 4;
const UNAVAILABLE: i32 = 14;

/// A reply: its message, and the version that the server says it is of.
pub struct Reply {
    pub message: Bytes,
    pub version: Option<String>,
}

/// One connection, whose task lives as long as the process.
#[derive(Clone)]
pub struct Client {
    sender: SendRequest<Bytes>,
    head: Request<()>,
}

impl Client {
    /// Connect; each call carries the headers of `head`.
    pub async fn connect(address: &str, head: Request<()>) -> Result<Self, String> {
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let (sender, connection) = client::Builder::new()
            .initial_window_size(WINDOW)
            .initial_connection_window_size(4 * WINDOW)
            .enable_push(false)
            .handshake(stream)
            .await
            .map_err(|error| error.to_string())?;
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                eprintln!("volary-load: a connection ended: {error}");
            }
        });
        Ok(Client { sender, head })
    }

    /// Call once; fails with a status code. A call whose time is over is reset.
    pub async fn call(&self, framed: Bytes, timeout: Option<Duration>) -> Result<Reply, i32> {
        let asked = self.ask(framed);
        match timeout {
            None => asked.await,
            Some(limit) => tokio::time::timeout(limit, asked).await.map_err(|_| DEADLINE_EXCEEDED)?,
        }
    }

    async fn ask(&self, framed: Bytes) -> Result<Reply, i32> {
        let lost = |_: h2::Error| UNAVAILABLE;
        let mut sender = self.sender.clone().ready().await.map_err(lost)?;
        let (response, mut body) = sender.send_request(self.head.clone(), false).map_err(lost)?;
        body.send_data(framed, true).map_err(lost)?;
        let response = response.await.map_err(lost)?;
        if let Some(code) = code_of(response.headers()) {
            return Err(code); // trailers only: there is no message
        }
        let version = response.headers().get("volary-version");
        let version = version.and_then(|value| Some(value.to_str().ok()?.to_owned()));
        let (message, code, told) = read(response.into_body()).await.map_err(lost)?;
        if code != OK || message.len() < PREFIX {
            return Err(if code == OK { UNKNOWN } else { code });
        }
        Ok(Reply { message: message.slice(PREFIX..), version: version.or(told) })
    }
}

/// Read a body to its end: its bytes, its status, and the version where the trailers have it.
async fn read(mut body: RecvStream) -> Result<(Bytes, i32, Option<String>), h2::Error> {
    let mut whole = Bytes::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        whole = if whole.is_empty() { chunk } else { [whole, chunk].concat().into() };
    }
    let trailers = body.trailers().await?.unwrap_or_default();
    let version = trailers.get("volary-version");
    let version = version.and_then(|value| Some(value.to_str().ok()?.to_owned()));
    Ok((whole, code_of(&trailers).unwrap_or(UNKNOWN), version))
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
