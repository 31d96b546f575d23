//! The contract: message types, the row of each method, and how a refusal is told.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;

pub mod inference {
    include!(concat!(env!("OUT_DIR"), "/inference.rs"));
}
pub mod volary {
    pub mod events {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/volary.events.v1.rs"));
        }
    }
    pub mod values {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/volary.values.v1.rs"));
        }
    }
    pub mod otlp {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/volary.otlp.v1.rs"));
        }
    }
}
pub mod google {
    pub mod rpc {
        include!(concat!(env!("OUT_DIR"), "/google.rpc.rs"));
    }
}

use google::rpc::Status;

const DOMAIN: &str = "volary.dev";
const DEFAULT_MAX_REQUEST_BYTES: usize = 4 << 20;

/// What `methods.json` says of one method.
#[derive(Clone, Debug)]
pub struct Row {
    pub allow: Vec<String>,
    pub default_deadline: Duration,
    pub max_deadline: Duration,
    pub max_request_bytes: usize,
}

impl Row {
    pub fn is_anonymous(&self) -> bool {
        self.allow.iter().any(|role| role == "anonymous")
    }
}

/// Read `methods.json`; the error names what is wrong with it.
pub fn rows_of(text: &str) -> Result<HashMap<String, Row>, String> {
    let document: serde_json::Value =
        serde_json::from_str(text).map_err(|error| format!("methods.json: {error}"))?;
    let rows = document.as_object().ok_or("methods.json is no object")?;
    rows.iter()
        .map(|(name, row)| Ok((name.clone(), row_of(row).ok_or(name.as_str())?)))
        .collect::<Result<_, &str>>()
        .map_err(|name| format!("methods.json: the row of {name} is incomplete"))
}

fn row_of(row: &serde_json::Value) -> Option<Row> {
    let allow = row.get("allow")?.as_array()?;
    let bytes = row.get("max_request_bytes")?.as_u64()? as usize;
    Some(Row {
        allow: allow
            .iter()
            .map(|role| role.as_str().map(str::to_owned))
            .collect::<Option<_>>()?,
        default_deadline: Duration::from_millis(row.get("default_deadline_ms")?.as_u64()?),
        max_deadline: Duration::from_millis(row.get("max_deadline_ms")?.as_u64()?),
        max_request_bytes: if bytes == 0 {
            DEFAULT_MAX_REQUEST_BYTES
        } else {
            bytes
        },
    })
}

/// The gRPC status codes that the data plane itself answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    Ok = 0,
    Cancelled = 1,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    ResourceExhausted = 8,
    Unavailable = 14,
}

impl Code {
    pub fn name(self) -> &'static str {
        match self {
            Code::Ok => "OK",
            Code::Cancelled => "CANCELLED",
            Code::InvalidArgument => "INVALID_ARGUMENT",
            Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Code::Unavailable => "UNAVAILABLE",
        }
    }
}

/// A call that is not answered: the status, its reason, and when to come back.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    pub code: Code,
    pub reason: &'static str,
    pub message: String,
    pub metadata: Vec<(&'static str, String)>,
    pub retry_after: Option<Duration>,
}

impl Refusal {
    pub fn new(code: Code, reason: &'static str, message: impl Into<String>) -> Self {
        Refusal {
            code,
            reason,
            message: message.into(),
            metadata: Vec::new(),
            retry_after: None,
        }
    }

    pub fn with(mut self, key: &'static str, value: impl ToString) -> Self {
        self.metadata.push((key, value.to_string()));
        self
    }

    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// The `google.rpc.Status` of `grpc-status-details-bin` (AIP-193).
    pub fn details(&self) -> Bytes {
        let info = ErrorInfo {
            reason: self.reason.into(),
            domain: DOMAIN.into(),
            metadata: self
                .metadata
                .iter()
                .map(|(key, value)| ((*key).into(), value.clone()))
                .collect(),
        };
        let mut details = vec![packed("google.rpc.ErrorInfo", &info)];
        if let Some(delay) = self.retry_after {
            let retry_delay = Some(duration_of(delay));
            details.push(packed("google.rpc.RetryInfo", &RetryInfo { retry_delay }));
        }
        let status = Status {
            code: self.code as i32,
            message: self.message.clone(),
            details,
        };
        status.encode_to_vec().into()
    }
}

/// The reason of a status, from its `ErrorInfo`; empty without one.
pub fn reason_of(status: &Status) -> String {
    let infos = status
        .details
        .iter()
        .filter(|any| any.type_url.ends_with("google.rpc.ErrorInfo"));
    let read = infos.filter_map(|any| ErrorInfo::decode(&any.value[..]).ok());
    read.map(|info| info.reason).next().unwrap_or_default()
}

pub fn duration_of(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: duration.as_secs() as i64,
        nanos: duration.subsec_micros() as i32 * 1_000,
    }
}

/// The Timestamp of UTC microseconds.
pub fn timestamp_of(time_us: i64) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: time_us.div_euclid(1_000_000),
        nanos: time_us.rem_euclid(1_000_000) as i32 * 1_000,
    }
}

fn packed(name: &str, message: &impl Message) -> prost_types::Any {
    prost_types::Any {
        type_url: format!("type.googleapis.com/{name}"),
        value: message.encode_to_vec(),
    }
}

/// `google.rpc.ErrorInfo`; the contract's descriptors do not reach that file.
#[derive(Clone, PartialEq, Message)]
struct ErrorInfo {
    #[prost(string, tag = "1")]
    reason: String,
    #[prost(string, tag = "2")]
    domain: String,
    #[prost(btree_map = "string, string", tag = "3")]
    metadata: std::collections::BTreeMap<String, String>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<prost_types::Duration>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_without_a_limit_takes_the_default() {
        let rows = rows_of(
            r#"{"/a.B/C": {"allow": ["anonymous"], "default_deadline_ms": 5000,
                "max_deadline_ms": 30000, "max_request_bytes": 0}}"#,
        )
        .unwrap();
        let row = &rows["/a.B/C"];
        assert!(row.is_anonymous());
        assert_eq!(row.max_request_bytes, 4 << 20);
        assert_eq!(row.default_deadline, Duration::from_secs(5));
    }

    #[test]
    fn a_broken_row_is_named() {
        let error = rows_of(r#"{"/a.B/C": {"allow": ["anonymous"]}}"#).unwrap_err();
        assert!(error.contains("/a.B/C"), "{error}");
    }

    #[test]
    fn a_refusal_carries_reason_and_retry() {
        let refusal = Refusal::new(Code::ResourceExhausted, "OVERLOADED", "no room")
            .with("limit", 3)
            .retry_after(Duration::from_millis(20));
        let status = Status::decode(refusal.details()).unwrap();
        assert_eq!((status.code, status.message.as_str()), (8, "no room"));
        let info = ErrorInfo::decode(&status.details[0].value[..]).unwrap();
        assert_eq!(
            (info.reason.as_str(), info.domain.as_str()),
            ("OVERLOADED", DOMAIN)
        );
        assert_eq!(info.metadata["limit"], "3");
        let retry = RetryInfo::decode(&status.details[1].value[..]).unwrap();
        assert_eq!(retry.retry_delay.unwrap().nanos, 20_000_000);
    }

    #[test]
    fn times_before_1970_have_positive_nanos() {
        let time = timestamp_of(-1);
        assert_eq!((time.seconds, time.nanos), (-1, 999_999_000));
    }
}
