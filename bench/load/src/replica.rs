//! A V2 server that costs next to nothing: what stands before it is what a bench measures.
//!
//! It answers `ModelInfer` with the version that it was asked for, health checks with SERVING, and
//! leaves as a server should when its standard input ends: no new connection, GOAWAY on the open
//! ones, an answer to every call that is on its way.

use std::cell::Cell;
use std::future::{poll_fn, Future};
use std::io::Read;
use std::rc::Rc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use h2::server::{self, SendResponse};
use h2::RecvStream;
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch::{channel, Receiver};
use tokio::task::{spawn_local, LocalSet};

const WINDOW: u32 = 1 << 20;
const STREAMS: u32 = 4096;
const LOOK: Duration = Duration::from_millis(5);
const PREFIX: usize = 5; // a flag and the length (gRPC over HTTP/2, Length-Prefixed-Message)
const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
const CHECK: &str = "/grpc.health.v1.Health/Check";
const SERVING: &[u8] = &[8, 1]; // HealthCheckResponse.status = 1
const NAME: u8 = 0x0a; // field 1, length-delimited: model_name of both messages
const VERSION: u8 = 0x12; // field 2: model_version of the reply

async fn serve(listener: TcpListener, ending: Receiver<bool>) {
    let open = Rc::new(Cell::new(0));
    let mut until = Box::pin(ended(ending.clone()));
    loop {
        let accepted = poll_fn(|cx| {
            if until.as_mut().poll(cx).is_ready() {
                return std::task::Poll::Ready(None);
            }
            listener.poll_accept(cx).map(Some)
        });
        let Some(accepted) = accepted.await else {
            break;
        };
        let Ok((stream, _)) = accepted else { continue };
        let (open, ending) = (open.clone(), ending.clone());
        open.set(open.get() + 1);
        spawn_local(async move {
            // a peer that breaks its connection is no trouble of the others
            let _ = converse(stream, ending).await;
            open.set(open.get() - 1);
        });
    }
    drop(listener);
    while open.get() > 0 {
        tokio::time::sleep(LOOK).await;
    }
}

async fn ended(mut ending: Receiver<bool>) {
    let _ = ending.wait_for(|is_over| *is_over).await;
}

/// Take the calls of one connection until the peer or this process has enough.
async fn converse(stream: TcpStream, ending: Receiver<bool>) -> Result<(), h2::Error> {
    let _ = stream.set_nodelay(true);
    let mut connection = server::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(4 * WINDOW)
        .max_concurrent_streams(STREAMS)
        .handshake::<_, Bytes>(stream)
        .await?;
    let mut until = Box::pin(ended(ending));
    let mut is_leaving = false;
    loop {
        let next = poll_fn(|cx| {
            if !is_leaving && until.as_mut().poll(cx).is_ready() {
                is_leaving = true;
                connection.graceful_shutdown();
            }
            connection.poll_accept(cx)
        });
        let Some(call) = next.await else {
            return Ok(());
        };
        let (request, respond) = call?;
        spawn_local(async move {
            let _ = answer(request, respond).await;
        });
    }
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    let (head, mut body) = request.into_parts();
    let mut message = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        message.put_slice(&chunk);
    }
    let version = head.headers.get("volary-version").cloned();
    let version = version.unwrap_or(HeaderValue::from_static(""));
    let reply = match head.uri.path() {
        INFER => inferred(
            message.get(PREFIX..).unwrap_or_default(),
            version.as_bytes(),
        ),
        CHECK => framed(&[SERVING]),
        _ => return refuse(&mut respond),
    };
    let mut stream = respond.send_response(headed(), false)?;
    stream.send_data(reply, false)?;
    let mut trailers = HeaderMap::with_capacity(3);
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers.insert("volary-version", version);
    trailers.insert("volary-tier", HeaderValue::from_static("model"));
    stream.send_trailers(trailers)
}

fn headed() -> Response<()> {
    let mut head = Response::new(());
    head.headers_mut()
        .insert("content-type", HeaderValue::from_static("application/grpc"));
    head
}

fn refuse(respond: &mut SendResponse<Bytes>) -> Result<(), h2::Error> {
    let mut head = headed();
    head.headers_mut()
        .insert("grpc-status", HeaderValue::from_static("12")); // UNIMPLEMENTED
    respond.send_response(head, true).map(drop)
}

/// Return a reply with the name of the request, whose first field it is, and a version.
fn inferred(request: &[u8], version: &[u8]) -> Bytes {
    let name = match request {
        [NAME, length, rest @ ..] if *length < 128 => rest.get(..*length as usize),
        _ => None,
    };
    let name = name.unwrap_or_default();
    let sizes = (
        [NAME, name.len() as u8],
        [VERSION, version.len().min(127) as u8],
    );
    framed(&[&sizes.0, name, &sizes.1, &version[..version.len().min(127)]])
}

fn framed(parts: &[&[u8]]) -> Bytes {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut whole = BytesMut::with_capacity(PREFIX + length);
    whole.put_u8(0);
    whole.put_u32(length as u32);
    parts.iter().for_each(|part| whole.put_slice(part));
    whole.freeze()
}

async fn run(port: u16) -> std::io::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let (end, ending) = channel(false);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = end.send(true);
    });
    serve(listener, ending).await;
    Ok(())
}

fn main() {
    let port = std::env::args().nth(1).and_then(|text| text.parse().ok());
    let Some(port) = port else {
        eprintln!("volary-replica PORT");
        std::process::exit(2);
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let outcome = runtime.and_then(|runtime| LocalSet::new().block_on(&runtime, run(port)));
    if let Err(error) = outcome {
        eprintln!("volary-replica: {error}");
        std::process::exit(1);
    }
}
