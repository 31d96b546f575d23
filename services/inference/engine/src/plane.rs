//! What the I/O thread knows of the process: rows, versions, health, and its counters.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::header::{HeaderMap, HeaderValue};

use crate::contract::{Code, Row};
use crate::credentials::{Principal, Verifier};
use crate::records::{Identity, Records};
use crate::turns::Turn;
use crate::upstream::Upstream;
use crate::version::{locked, Version};

/// Calls of one method: its path, how many by code, by latency bucket, and seconds in all.
pub type Counted<Codes> = (&'static str, Codes, Vec<u64>, f64);

const STREAM_TIMEOUT: Duration = Duration::from_secs(30);
const BEARER: &str = "bearer ";
const CODES: [Code; 6] = [
    Code::Ok,
    Code::Cancelled,
    Code::InvalidArgument,
    Code::DeadlineExceeded,
    Code::ResourceExhausted,
    Code::Unavailable,
];

/// The methods that are answered here; Python answers every other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    ModelInfer,
    ModelReady,
    ServerLive,
    ServerReady,
    HealthCheck,
    ModelStreamInfer,
}

pub const METHODS: [(Method, &str); 6] = [
    (
        Method::ModelInfer,
        "/inference.GRPCInferenceService/ModelInfer",
    ),
    (
        Method::ModelReady,
        "/inference.GRPCInferenceService/ModelReady",
    ),
    (
        Method::ServerLive,
        "/inference.GRPCInferenceService/ServerLive",
    ),
    (
        Method::ServerReady,
        "/inference.GRPCInferenceService/ServerReady",
    ),
    (Method::HealthCheck, "/grpc.health.v1.Health/Check"),
    (
        Method::ModelStreamInfer,
        "/inference.GRPCInferenceService/ModelStreamInfer",
    ),
];

impl Method {
    pub fn of(path: &str) -> Option<Method> {
        METHODS
            .iter()
            .find(|(_, known)| *known == path)
            .map(|(method, _)| *method)
    }

    pub fn path(self) -> &'static str {
        METHODS[self as usize].1
    }
}

/// A version that answers calls here.
pub struct Loaded {
    pub about: Arc<Identity>,
    pub version: Arc<Version>,
    pub number: HeaderValue,
}

#[derive(Default)]
pub struct Model {
    pub versions: HashMap<i64, Arc<Loaded>>,
    pub production: Option<i64>,
}

/// By project and model: the versions that answer, and which one a call without any gets.
pub type Table = HashMap<String, HashMap<String, Model>>;

/// Counts of one method: calls by code, and their times in the buckets of the histogram.
#[derive(Clone, Default)]
pub struct Counts {
    pub by_code: [u64; CODES.len()],
    pub buckets: Vec<u64>,
    pub seconds: f64,
}

pub struct Plane {
    rows: Vec<Row>,
    verifier: Mutex<Verifier>,
    table: RwLock<Arc<Table>>,
    health: RwLock<Arc<HashMap<String, bool>>>,
    edges: Vec<f64>,
    counts: Vec<Mutex<Counts>>,
    in_flight: AtomicUsize,
    pub max_calls: usize,
    pub records: Records,
    pub upstream: Upstream,
    stream_timeout: OnceLock<Duration>,
    pub turn: Arc<Turn>,
}

impl Plane {
    /// Fails when the contract has no row of a method that is answered here.
    #[allow(clippy::too_many_arguments)] // put together once
    pub fn new(
        rows: &HashMap<String, Row>,
        jwks: Option<PathBuf>,
        revocations: Option<PathBuf>,
        edges: Vec<f64>,
        max_calls: usize,
        records: Records,
        upstream: Upstream,
    ) -> Result<Self, String> {
        let own = METHODS.iter().map(|(_, path)| {
            rows.get(*path)
                .cloned()
                .ok_or(format!("the contract has no row of {path}"))
        });
        let counts = || {
            Mutex::new(Counts {
                buckets: vec![0; edges.len() + 1],
                ..Counts::default()
            })
        };
        Ok(Plane {
            rows: own.collect::<Result<_, _>>()?,
            verifier: Mutex::new(Verifier::new(jwks, revocations)),
            table: RwLock::default(),
            health: RwLock::default(),
            counts: METHODS.iter().map(|_| counts()).collect(),
            edges,
            in_flight: AtomicUsize::new(0),
            max_calls,
            records,
            upstream,
            stream_timeout: OnceLock::new(),
            turn: Arc::default(),
        })
    }

    /// How long a message of a stream may take.
    pub fn stream_timeout(&self) -> Duration {
        *self.stream_timeout.get_or_init(|| STREAM_TIMEOUT)
    }

    /// Say it, before the first call.
    pub fn set_stream_timeout(&self, timeout: Duration) {
        let _ = self.stream_timeout.set(timeout);
    }

    pub fn row(&self, method: Method) -> &Row {
        &self.rows[method as usize]
    }

    pub fn table(&self) -> Arc<Table> {
        self.table
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub fn set_table(&self, table: Table) {
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
    }

    /// Whether a service takes calls; None when Python knows more of it.
    pub fn health_of(&self, service: &str) -> Option<bool> {
        let health = self.health.read().unwrap_or_else(PoisonError::into_inner);
        health.get(service).copied()
    }

    pub fn set_health(&self, health: HashMap<String, bool>) {
        *self.health.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(health);
    }

    /// The caller of a method, when its credential is valid and its role allowed.
    pub fn principal_of(
        &self,
        method: Method,
        headers: &HeaderMap,
        now: Instant,
    ) -> Option<Arc<Principal>> {
        let row = self.row(method);
        let token = token_of(headers)?;
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs() as i64;
        let principal = locked(&self.verifier).verify(token, now, now_s)?;
        principal.has_one_of(&row.allow).then_some(principal)
    }

    /// Count a call in; say how many are in flight with it.
    pub fn enter(&self) -> usize {
        self.in_flight.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub fn leave(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub fn count(&self, method: Method, code: Code, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = self.edges.partition_point(|edge| *edge < seconds);
        let mut counts = locked(&self.counts[method as usize]);
        let place = CODES.iter().position(|known| *known == code);
        counts.by_code[place.unwrap_or(0)] += 1;
        counts.buckets[bucket] += 1;
        counts.seconds += seconds;
    }

    /// Take what was counted since the last time, of the methods that were called.
    pub fn take_counts(&self) -> Vec<Counted<Vec<(&'static str, u64)>>> {
        METHODS
            .iter()
            .zip(&self.counts)
            .map(|((_, path), counts)| {
                let mut counts = locked(counts);
                let buckets = vec![0; self.edges.len() + 1];
                let fresh = Counts {
                    buckets,
                    ..Counts::default()
                };
                (*path, std::mem::replace(&mut *counts, fresh))
            })
            .filter(|(_, counts)| counts.by_code.iter().any(|count| *count > 0))
            .map(|(path, counts)| {
                let by_code = CODES.iter().map(|code| code.name()).zip(counts.by_code);
                let by_code = by_code.filter(|(_, count)| *count > 0).collect();
                (path, by_code, counts.buckets, counts.seconds)
            })
            .collect()
    }
}

/// The credential of `x-api-key`, else of `authorization: Bearer`.
fn token_of(headers: &HeaderMap) -> Option<&str> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(key) = text("x-api-key").filter(|key| !key.is_empty()) {
        return Some(key);
    }
    let bearer = text("authorization")?;
    let (scheme, token) = bearer.split_at_checked(BEARER.len())?;
    scheme.eq_ignore_ascii_case(BEARER).then(|| token.trim())
}
