//! Load for a gRPC server: prepared bytes to one method, from one thread; prints one JSON object.
//!
//! A closed loop of `concurrency` callers, or calls that begin at a fixed rate. With a token each
//! call carries 16 bytes of its own, and a reply without them belongs to somebody else. With a file
//! for answers there is a line in it for each: when it was asked, when it was answered (microseconds
//! of the wall clock) and by which version.

mod answers;
mod options;
mod raw;
mod tally;
/// The load goes before whatever else has its core, in the way of the engine's sockets: it is the
/// clock that everything is measured by.
#[allow(dead_code)] // it gives way to nobody
#[path = "../../../services/inference/engine/src/threads.rs"]
mod threads;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::Request;
use tokio::task::LocalSet;

use answers::Answers;
use options::{Options, USAGE};
use raw::{framed, Client, Failure, DEADLINE_EXCEEDED};
use tally::Tally;

const GRACE: Duration = Duration::from_secs(10);
const MAX_OPEN: usize = 100_000;

struct Load {
    options: Options,
    framed: Bytes,
    tally: RefCell<Tally>,
    answers: RefCell<Option<Answers>>,
    /// Calls that begin before are not counted.
    counted_from: Instant,
    until: Instant,
    serial: Cell<u32>,
    open: Cell<usize>,
}

impl Load {
    /// Return the body of one call, and the bytes that its reply must hold.
    fn body(&self) -> (Bytes, Option<[u8; 16]>) {
        let Some(at) = self.options.token else {
            return (self.framed.clone(), None);
        };
        let serial = self.serial.get().wrapping_add(1);
        self.serial.set(serial);
        let mut token = [0; 16];
        // whole numbers below 2^24: exact as FP32, whatever the model does to a copy
        let parts = [serial & 0xfff, (serial >> 12) & 0xfff, serial >> 24, 0xabc];
        for (place, part) in parts.into_iter().enumerate() {
            token[4 * place..4 * place + 4].copy_from_slice(&(part as f32 + 1.0).to_le_bytes());
        }
        let mut body = self.options.body.to_vec();
        body[at..at + 16].copy_from_slice(&token);
        (framed(&body), Some(token))
    }

    async fn call(&self, client: &Client) {
        let (body, token) = self.body();
        let began = Instant::now();
        let outcome = client.call(body, self.options.timeout).await;
        let took = began.elapsed();
        if let (Ok(reply), Some(answers)) = (&outcome, self.answers.borrow_mut().as_mut()) {
            answers.note(began, took, reply.version.as_deref());
        }
        if began < self.counted_from {
            return;
        }
        let mut tally = self.tally.borrow_mut();
        let at = began - self.counted_from;
        match outcome {
            Ok(_) if self.options.timeout.is_some_and(|limit| took > limit) => {
                let late = Failure {
                    code: DEADLINE_EXCEEDED,
                    reason: "late".to_owned(),
                };
                tally.failed(&late, at, took);
            }
            Ok(reply) => {
                tally.answered(took, reply.version.as_deref());
                if token.is_some_and(|token| !holds(&reply.message, &token)) {
                    tally.mixed_up += 1;
                }
            }
            Err(failure) => tally.failed(&failure, at, took),
        }
    }
}

fn holds(reply: &[u8], token: &[u8; 16]) -> bool {
    reply.windows(token.len()).any(|window| window == token)
}

async fn closed_loop(load: &Rc<Load>, clients: &[Rc<Client>]) {
    let callers: Vec<_> = (0..load.options.concurrency)
        .map(|place| {
            let (load, client) = (load.clone(), clients[place % clients.len()].clone());
            tokio::task::spawn_local(async move {
                while Instant::now() < load.until {
                    load.call(&client).await;
                }
            })
        })
        .collect();
    for caller in callers {
        let _ = caller.await;
    }
}

async fn open_loop(load: &Rc<Load>, clients: &[Rc<Client>]) {
    let began = Instant::now();
    let mut sent: u64 = 0;
    while Instant::now() < load.until {
        let due = (began.elapsed().as_secs_f64() * load.options.rate) as u64;
        while sent < due {
            let client = clients[sent as usize % clients.len()].clone();
            sent += 1;
            if load.open.get() >= MAX_OPEN {
                continue; // nobody answers at all: memory is bounded
            }
            load.open.set(load.open.get() + 1);
            let load = load.clone();
            tokio::task::spawn_local(async move {
                load.call(&client).await;
                load.open.set(load.open.get() - 1);
            });
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let end = Instant::now() + GRACE;
    while load.open.get() > 0 && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn run(options: Options) -> Result<serde_json::Value, String> {
    let head = head(&options)?;
    let mut clients = Vec::new();
    for _ in 0..options.connections {
        clients.push(Client::connect(&options.address, head.clone()).await?);
    }
    let answers = options
        .answers
        .as_deref()
        .map(Answers::create)
        .transpose()?;
    let counted_from = Instant::now() + options.warmup;
    let load = Rc::new(Load {
        framed: framed(&options.body),
        tally: RefCell::default(),
        answers: RefCell::new(answers),
        counted_from,
        until: counted_from + options.span,
        serial: Cell::new(0),
        open: Cell::new(0),
        options,
    });
    if load.options.rate > 0.0 {
        open_loop(&load, &clients).await;
    } else {
        closed_loop(&load, &clients).await;
    }
    if let Some(answers) = load.answers.borrow_mut().take() {
        answers.close()?;
    }
    let mut tally = std::mem::take(&mut *load.tally.borrow_mut());
    tally.connections_lost = clients.iter().map(|client| client.lost()).sum();
    Ok(tally.report(load.options.span))
}

/// What every call says of itself.
fn head(options: &Options) -> Result<Request<()>, String> {
    let uri = format!("http://{}{}", options.address, options.path);
    let mut head = Request::post(uri)
        .body(())
        .map_err(|error| error.to_string())?;
    *head.version_mut() = http::Version::HTTP_2;
    let mut put = |name: &str, text: &str| {
        let key = HeaderName::try_from(name).map_err(|_| format!("{name} is no header"))?;
        let value =
            HeaderValue::try_from(text).map_err(|_| format!("the value of {name} is no text"))?;
        head.headers_mut().insert(key, value);
        Ok::<(), String>(())
    };
    put("content-type", "application/grpc")?;
    put("te", "trailers")?;
    if let Some(timeout) = options.timeout {
        put("grpc-timeout", &format!("{}u", timeout.as_micros()))?;
    }
    for (name, text) in &options.headers {
        put(name, text)?;
    }
    Ok(head)
}

fn main() {
    threads::go_first();
    let found = Options::read(std::env::args().skip(1)).and_then(|options| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| error.to_string())?;
        LocalSet::new().block_on(&runtime, run(options))
    });
    match found {
        Ok(report) => println!("{report}"),
        Err(text) => {
            eprintln!("volary-load: {text}\n{USAGE}");
            std::process::exit(2);
        }
    }
}
