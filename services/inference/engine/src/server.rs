//! The listener: one thread for sockets and protocol, each call routed by its path.

use std::convert::Infallible;
use std::net::TcpListener;
use std::pin::pin;
use std::sync::Arc;
use std::thread::{Builder as Threads, JoinHandle};
use std::time::{Duration, Instant};

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::net::TcpStream;
use tokio::runtime;
use tokio::sync::{mpsc, watch};

use crate::calls;
use crate::plane::Plane;
use crate::socket::Socket;
use crate::threads;

const WINDOW: u32 = 1 << 20;
const MAX_STREAMS: u32 = 2_000;
const MAX_HEADERS: u32 = 16 << 10;
// callers whose time ran out reset many calls at once; each that waits to be seen takes memory
const MAX_RESETS: usize = 2_000;
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// A listener that takes calls until it is stopped.
pub struct Server {
    stopping: watch::Sender<Option<Instant>>,
    thread: JoinHandle<()>,
}

impl Server {
    /// Take calls on a bound socket, in a thread of its own.
    pub fn start(listener: TcpListener, plane: Arc<Plane>) -> std::io::Result<Self> {
        listener.set_nonblocking(true)?;
        let (stopping, stopped) = watch::channel(None);
        let turning = plane.clone();
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .on_thread_park(move || turning.turn.end())
            .build()?;
        let thread = Threads::new().name("data plane".into()).spawn(move || {
            threads::go_first();
            if let Err(error) = runtime.block_on(accept(listener, plane, stopped)) {
                eprintln!("the data plane ended: {error}");
            }
        })?;
        Ok(Server { stopping, thread })
    }

    /// Take no new call, let those in flight finish within the grace.
    pub fn stop(self, grace: Duration) {
        self.stopping.send_replace(Some(Instant::now() + grace));
        let _ = self.thread.join();
    }
}

async fn accept(
    listener: TcpListener,
    plane: Arc<Plane>,
    mut stopped: watch::Receiver<Option<Instant>>,
) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let answering = plane.clone();
    tokio::spawn(async move { answering.turn.answer().await });
    let ticking = plane.clone();
    tokio::spawn(async move { ticking.turn.tick().await });
    let (open, mut all_closed) = mpsc::channel::<()>(1);
    let watched = stopped.clone();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let serving = serve(stream, plane.clone(), watched.clone(), open.clone());
                    tokio::spawn(serving);
                }
                // out of descriptors: others will be closed
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            _ = stopped.changed() => break,
        }
    }
    drop(listener);
    drop(open);
    let until = (*stopped.borrow()).unwrap_or_else(Instant::now);
    // what is still open at the end of the grace is cut off with the runtime
    let _ = tokio::time::timeout_at(until.into(), all_closed.recv()).await;
    Ok(())
}

async fn serve(
    stream: TcpStream,
    plane: Arc<Plane>,
    mut stopped: watch::Receiver<Option<Instant>>,
    _open: mpsc::Sender<()>,
) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request: Request<Incoming>| {
        // what is handed from hand to hand is moved each time: a pointer, not all that a call may need
        let answer = Box::pin(calls::answer(plane.clone(), request));
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(4 * WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_RESETS)
        // counted over a connection's whole life, and one connection may carry every caller behind a
        // proxy: with a limit they would all be cut off in the end
        .max_local_error_reset_streams(None)
        .max_header_list_size(MAX_HEADERS)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .serve_connection(Socket::new(stream), service);
    let mut connection = pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = stopped.changed() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}
