//! Spans as bytes: `ExportTraceServiceRequest` of OTLP, whose fields the numbers below are.

use crate::contract::volary::otlp::v1::SpanStatusCode;
use crate::fields::{bytes, filled, fixed32, fixed64, integer, nested, text};
use crate::records::{Span, Value};

mod request {
    pub const RESOURCE_SPANS: u32 = 1;
    pub const RESOURCE: u32 = 1;
    pub const SCOPE_SPANS: u32 = 2;
    pub const SCOPE: u32 = 1;
    pub const SCOPE_NAME: u32 = 1;
    pub const SPANS: u32 = 2;
}
mod span {
    pub const TRACE_ID: u32 = 1;
    pub const SPAN_ID: u32 = 2;
    pub const TRACE_STATE: u32 = 3;
    pub const PARENT_SPAN_ID: u32 = 4;
    pub const NAME: u32 = 5;
    pub const KIND: u32 = 6;
    pub const START: u32 = 7;
    pub const END: u32 = 8;
    pub const ATTRIBUTES: u32 = 9;
    pub const STATUS: u32 = 15;
    pub const FLAGS: u32 = 16;
}
mod value {
    pub const STRING: u32 = 1;
    pub const BOOL: u32 = 2;
    pub const INT: u32 = 3;
}
const KEY: u32 = 1;
const VALUE: u32 = 2;
const STATUS_CODE: u32 = 3;
const SCOPE: &str = "volary";
const SPAN_BYTES: usize = 384; // about as many

/// One request with all spans of a process, whose serialized `Resource` is given.
pub fn request_of(spans: &[Span], resource: &[u8]) -> Vec<u8> {
    let mut all = Vec::with_capacity(spans.len() * SPAN_BYTES);
    nested(&mut all, request::SCOPE, |out| {
        text(out, request::SCOPE_NAME, SCOPE)
    });
    for each in spans {
        nested(&mut all, request::SPANS, |out| write_span(out, each));
    }
    let mut of_resource = Vec::with_capacity(all.len() + resource.len() + 16);
    bytes(&mut of_resource, request::RESOURCE, resource);
    bytes(&mut of_resource, request::SCOPE_SPANS, &all);
    let mut out = Vec::with_capacity(of_resource.len() + 8);
    bytes(&mut out, request::RESOURCE_SPANS, &of_resource);
    out
}

fn write_span(out: &mut Vec<u8>, of: &Span) {
    bytes(out, span::TRACE_ID, &of.trace.id.to_be_bytes());
    bytes(out, span::SPAN_ID, &of.trace.span.to_be_bytes());
    filled::text(out, span::TRACE_STATE, &of.trace.state);
    if of.trace.parent != 0 {
        bytes(out, span::PARENT_SPAN_ID, &of.trace.parent.to_be_bytes());
    }
    text(out, span::NAME, of.name);
    integer(out, span::KIND, i64::from(of.kind as i32));
    fixed64(out, span::START, of.began_ns);
    fixed64(out, span::END, of.ended_ns);
    write_attribute(out, "rpc.grpc.status_code", &Value::Word(of.code));
    if let Some(reason) = of.error {
        write_attribute(out, "error.type", &Value::Word(reason));
    }
    for (key, value) in &of.attributes {
        write_attribute(out, key, value);
    }
    if of.code != "OK" {
        let code = i64::from(SpanStatusCode::Error as i32);
        nested(out, span::STATUS, |out| integer(out, STATUS_CODE, code));
    }
    fixed32(out, span::FLAGS, 1);
}

fn write_attribute(out: &mut Vec<u8>, key: &str, value: &Value) {
    nested(out, span::ATTRIBUTES, |out| {
        text(out, KEY, key);
        nested(out, VALUE, |out| match value {
            Value::Text(value) => text(out, value::STRING, value),
            Value::Word(value) => text(out, value::STRING, value),
            Value::Number(value) => integer(out, value::INT, *value),
            Value::Flag(value) => integer(out, value::BOOL, i64::from(*value)),
        });
    });
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::contract::volary::otlp::v1 as otlp;
    use crate::records::Trace;

    fn attribute(key: &str, value: otlp::any_value::Value) -> otlp::KeyValue {
        otlp::KeyValue {
            key: key.into(),
            value: Some(otlp::AnyValue { value: Some(value) }),
        }
    }

    #[test]
    fn every_field_comes_back() {
        use otlp::any_value::Value as Any;
        let span = Span {
            trace: Trace {
                id: 5,
                span: 6,
                parent: 7,
                state: "a=b".into(),
                is_sampled: true,
            },
            name: "infer",
            kind: otlp::SpanKind::Internal,
            began_ns: 1 << 60,
            ended_ns: (1 << 60) + 1,
            code: "CANCELLED",
            error: Some("CANCELLED"),
            attributes: vec![
                ("text", Value::Text("x".repeat(200))),
                ("number", Value::Number(-1)),
                ("flag", Value::Flag(false)),
            ],
        };
        let resource = otlp::Resource {
            attributes: vec![attribute("service.name", Any::StringValue("s".into()))],
            ..otlp::Resource::default()
        };
        let data = request_of(&[span], &resource.encode_to_vec());
        let expected = otlp::Span {
            trace_id: 5u128.to_be_bytes().to_vec(),
            span_id: 6u64.to_be_bytes().to_vec(),
            trace_state: "a=b".into(),
            parent_span_id: 7u64.to_be_bytes().to_vec(),
            flags: 1,
            name: "infer".into(),
            kind: otlp::SpanKind::Internal as i32,
            start_time_unix_nano: 1 << 60,
            end_time_unix_nano: (1 << 60) + 1,
            attributes: vec![
                attribute("rpc.grpc.status_code", Any::StringValue("CANCELLED".into())),
                attribute("error.type", Any::StringValue("CANCELLED".into())),
                attribute("text", Any::StringValue("x".repeat(200))),
                attribute("number", Any::IntValue(-1)),
                attribute("flag", Any::BoolValue(false)),
            ],
            status: Some(otlp::SpanStatus {
                code: otlp::SpanStatusCode::Error as i32,
                ..otlp::SpanStatus::default()
            }),
            ..otlp::Span::default()
        };
        let scope = otlp::InstrumentationScope {
            name: "volary".into(),
            ..otlp::InstrumentationScope::default()
        };
        let expected = otlp::ExportTraceServiceRequest {
            resource_spans: vec![otlp::ResourceSpans {
                resource: Some(resource),
                scope_spans: vec![otlp::ScopeSpans {
                    scope: Some(scope),
                    spans: vec![expected],
                    ..otlp::ScopeSpans::default()
                }],
                ..otlp::ResourceSpans::default()
            }],
        };
        assert_eq!(
            otlp::ExportTraceServiceRequest::decode(&data[..]),
            Ok(expected)
        );
    }
}
